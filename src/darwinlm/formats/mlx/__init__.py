"""Models in mlx-lm."""
