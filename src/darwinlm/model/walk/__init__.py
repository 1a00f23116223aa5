"""A model walked through block by block: its decoder, its residual stream, and hidden states in memory or in files."""
