"""Pipelines from a recipe to figures, which run the same commands as a user would."""
