"""What goes on in a home and on this machine, as values read from the disk and the system."""
