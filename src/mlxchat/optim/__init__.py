"""The optimizer: a rule for each group of parameters, and the schedules of its rates."""
