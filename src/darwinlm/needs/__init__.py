"""What a stage does and holds, from the sizes of a model and a recipe; no weights are read."""
