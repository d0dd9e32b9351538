"""Bytes on disk and far away: atomic files, locks, byte ranges, tar headers, images. Knows nothing above it."""
