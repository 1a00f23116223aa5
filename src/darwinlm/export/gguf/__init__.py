"""GGUF files for stock llama.cpp: architecture, tensors, tokenizer, and an independent reader."""
