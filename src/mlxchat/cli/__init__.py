"""The command line: every command a few lines over what does the work."""
