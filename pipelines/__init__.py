"""pipelines: whole journeys, from a recipe to figures, through the same commands a user types."""
