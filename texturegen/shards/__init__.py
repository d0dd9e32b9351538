"""The shard format: write, read, verify, merge and split shard directories."""

from texturegen.shards.merge import merge, split
from texturegen.shards.reader import Sample, Shards, open_shards
from texturegen.shards.verify import verify
from texturegen.shards.writer import ShardWriter

__all__ = ["Sample", "ShardWriter", "Shards", "merge", "open_shards", "split", "verify"]
