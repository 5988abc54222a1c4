"""Runs, machine and disk as values, read from a home and from the system."""
