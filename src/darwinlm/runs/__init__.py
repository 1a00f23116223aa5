"""Entry points: a sweep of sizes, rounds of pruning, recovery without pruning."""
