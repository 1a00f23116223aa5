"""What an allocation loses: modules in place, the dense model's side, KL, training of candidates."""
