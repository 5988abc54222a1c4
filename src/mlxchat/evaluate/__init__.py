"""The quality of a model: its validation loss, and the fraction of problems it solves."""
