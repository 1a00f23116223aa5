"""Other methods under the same budget, text and surgery, and their table."""
