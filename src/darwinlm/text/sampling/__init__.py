"""Text that a model writes itself: batched sampling, chats from the model's own template, and documents."""
