"""What one sees. Imports neither MLX nor the training code: it knows events and plain values."""
