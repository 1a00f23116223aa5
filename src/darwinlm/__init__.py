"""darwinlm: make a language model smaller and faster without making it stupid."""

__version__ = "0.1.0"
