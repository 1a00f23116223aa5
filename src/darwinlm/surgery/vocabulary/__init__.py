"""A smaller vocabulary: the choice of its tokens, the cut tokenizer, embedding and head."""
