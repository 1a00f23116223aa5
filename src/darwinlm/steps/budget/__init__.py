"""The bound on the smaller model, and the search problem that it gives."""
