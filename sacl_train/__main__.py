"""`python -m sacl_train` runs `sacl-train`; torchrun starts it in this way."""

from sacl_train.cli.train import train_main

train_main()
