"""From the name of a model to its checkpoint, or to the loaded model."""
