"""Memory and time of a run before it starts, and its time limit."""
