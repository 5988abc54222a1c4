"""mlxchat: train a GPT on your own machine, and talk to it."""

from mlxchat import blas

__version__ = "0.1.0"

blas.prepare()
