"""The dense model with the tokens of a smaller one."""
