"""A vocabulary whose size follows from the budget."""
