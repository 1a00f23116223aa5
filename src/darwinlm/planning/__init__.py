"""What a run takes before it starts: memory from one table of formulas, time from one measured rate."""
