"""Muon for the matrices of the blocks, AdamW for all else, and how their numbers change."""
