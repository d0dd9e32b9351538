"""Small, complete programs that train other methods on the same shards; each is meant to be copied (docs/reuse.md)."""
