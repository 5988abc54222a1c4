"""Runs looked at afterwards: what is on disk of each, side by side, moved, and in one HTML file."""
