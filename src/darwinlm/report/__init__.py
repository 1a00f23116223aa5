"""The page that tells what was gained and lost."""
