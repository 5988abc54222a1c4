"""The network: its shape, its forward pass, and the arithmetic of its size."""
