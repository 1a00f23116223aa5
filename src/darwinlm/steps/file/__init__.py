"""The GGUF file that a budget bounds."""
