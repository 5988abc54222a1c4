"""How good a model is: validation loss, and the share of problems that it solves."""
