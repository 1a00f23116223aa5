"""Whether a user's measure chooses better among finished candidates than the KL does."""
