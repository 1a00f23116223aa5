"""GGUF files: architectures of llama.cpp, headers, tensors, tokenizers; read and written."""
