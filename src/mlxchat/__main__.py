"""``python -m mlxchat``."""

from mlxchat.cli.app import main

main()
