"""From shards to views: uint8 batches, weak augmentation, cells and combinations, and reproducible random numbers."""

import sacl_train.extra  # noqa: F401 (says what to install)
