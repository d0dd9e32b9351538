"""From shards to views: uint8 batches, weak augmentation, cells and combinations, and reproducible random numbers."""
