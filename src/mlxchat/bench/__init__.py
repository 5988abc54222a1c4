"""How fast this machine trains and generates."""
