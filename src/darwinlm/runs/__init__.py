"""Entry points: one size, a sweep of sizes, recovery without pruning, the demo, speed in engines, verification."""
