"""The commands `sacl-train`, `sacl-eval` and `sacl-export`."""
