"""The `sacl-train`, `sacl-eval` and `sacl-export` commands."""
