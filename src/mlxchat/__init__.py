"""mlxchat: train a GPT on your own machine, and talk to it."""

__version__ = "0.1.0"
