"""The pictures of reports: those of a whole run, and how all are drawn. Matplotlib is imported only to draw."""
