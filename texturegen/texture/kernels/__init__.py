"""Building blocks of the methods: exemplars, windows, nearest neighbours, SIMD, random numbers, cuts."""

from pathlib import Path

from texturegen.system.jit_cache import ensure_cache_directory

ensure_cache_directory(Path(__file__).parent)  # every module with compiled functions imports this package first
