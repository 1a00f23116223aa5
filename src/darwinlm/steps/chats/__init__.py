"""Figures of chat models on the dense model's answers."""
