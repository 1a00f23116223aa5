"""What users start: a sweep of sizes, rounds of pruning, recovery on its own."""
