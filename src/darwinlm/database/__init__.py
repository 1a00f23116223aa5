"""Every module at every level from one factorisation."""
