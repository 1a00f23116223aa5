"""Other methods in the same pipeline: same units, budget, text and surgery, so that only the method differs."""
