"""The smaller model of an allocation."""
