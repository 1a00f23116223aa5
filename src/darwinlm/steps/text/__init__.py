"""Text of a run: sources, disjoint splits, packing, and checks that search never sees evaluation text."""
