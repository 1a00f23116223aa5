"""Measures of one's own: benchmark tasks, files of questions, and functions, all with one score for each item."""
