"""Recipe -> plan -> jobs -> engine -> shard directory."""

from texturegen.build.recipe import Recipe
from texturegen.build.run import Result, build, finish

__all__ = ["Recipe", "Result", "build", "finish"]
