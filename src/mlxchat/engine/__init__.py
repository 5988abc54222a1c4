"""Inference: the key-value cache, sampling, and the loop that generates tokens."""
