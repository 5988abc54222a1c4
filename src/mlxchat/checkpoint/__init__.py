"""Checkpoints: their files, where they lie, and what they hold."""
