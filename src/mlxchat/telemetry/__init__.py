"""The events of a run, their log, the rates computed from them, and the status file."""
