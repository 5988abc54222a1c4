"""The network: its shape, its forward and backward pass, and the arithmetic of its size."""
