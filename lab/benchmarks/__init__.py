"""Speed and memory against the alternative in the same run."""
