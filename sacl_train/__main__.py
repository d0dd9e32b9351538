"""`python -m sacl_train` is `sacl-train`: what torchrun starts."""

from sacl_train.cli.train import train_main

train_main()
