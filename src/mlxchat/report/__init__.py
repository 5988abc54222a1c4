"""Runs looked at afterwards: what is on disk of each, side by side, moved, copied and removed."""
