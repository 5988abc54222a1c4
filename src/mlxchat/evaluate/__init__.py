"""The quality of a model: validation loss, and the share of problems that it solves."""
