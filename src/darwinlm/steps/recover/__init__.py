"""Recovery: continued training of the smaller model, by distillation from the dense one or on plain text."""
