"""Text: where it comes from, how it becomes tokens, and how tokens become batches."""
