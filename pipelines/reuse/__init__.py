"""Small complete programs that train other methods on the same shards, each meant to be copied. See docs/reuse.md."""
