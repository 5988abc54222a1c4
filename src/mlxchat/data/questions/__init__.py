"""Questions whose answers can be checked: generated ones in levels of difficulty, and of files."""
