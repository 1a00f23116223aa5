"""Models in use, found and opened by name, and engines, each in a separate process that may crash."""
