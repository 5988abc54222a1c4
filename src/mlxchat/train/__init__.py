"""Training: one loop for every stage, and the recipes that set it up."""
