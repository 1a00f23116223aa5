"""The stages, a thin file for each: inputs, key and output."""
