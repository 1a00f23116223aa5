"""Second moments of the inputs of output projections, streamed block by block."""
