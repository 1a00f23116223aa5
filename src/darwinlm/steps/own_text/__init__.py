"""Text that the dense model writes itself."""
