"""sacl_train: shards in, a contrastively trained encoder and its figures out (PyTorch)."""
