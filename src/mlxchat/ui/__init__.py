"""The user interface: shows events and plain values. Imports neither MLX nor training code."""
