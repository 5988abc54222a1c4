"""Tasks by name: their problems, what a model answers, how many it gets right."""
