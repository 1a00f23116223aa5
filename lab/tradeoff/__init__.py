"""Prune, quantise, or both: GGUF files of a model and of smaller ones, measured in llama.cpp."""
