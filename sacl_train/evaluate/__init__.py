"""Figures of encoders: features once, then probes."""

import sacl_train.extra  # noqa: F401 (says what to install)
