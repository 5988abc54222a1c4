"""Helpers that test modules share; no test module imports from another."""
