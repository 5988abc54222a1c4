"""Muon for matrices, AdamW for the embedding and the head, and how their numbers change."""
