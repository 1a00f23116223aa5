"""Export of a finished model to the formats of engines."""
