"""Derives the numbers of a run from its settings and the machine; pure."""
