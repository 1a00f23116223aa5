"""GGUF files for stock llama.cpp: which architecture holds a model, its tensors, its tokenizer, and a reader."""
