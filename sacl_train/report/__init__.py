"""Curves, tables and the HTML report of runs."""

import sacl_train.extra  # noqa: F401 (says what to install)
