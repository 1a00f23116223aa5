"""Construction of physically smaller modules and models."""
