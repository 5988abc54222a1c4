"""What a run reports: events, the log of them, rates computed from them, and its status."""
