"""What pruning is worth for models that read: a reranker and an embedder made, pruned and measured on two cores."""
