"""Whole journeys from a recipe to figures, by the same commands that a user types."""
