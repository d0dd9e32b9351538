"""The training loop and what it is made of; knows no method's insides."""

import sacl_train.extra  # noqa: F401 (says what to install)
