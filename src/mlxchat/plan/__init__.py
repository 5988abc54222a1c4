"""From settings and a machine to the numbers of a run; pure."""
