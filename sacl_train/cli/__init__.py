"""The `sacl-train`, `sacl-eval` and `sacl-export` commands."""

import sacl_train.extra  # noqa: F401 (says what to install)
