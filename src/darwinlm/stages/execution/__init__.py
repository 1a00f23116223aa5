"""How stages run: a stage is declared once, and everything else follows from the graph of declarations."""
