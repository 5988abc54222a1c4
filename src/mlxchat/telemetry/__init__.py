"""What a run says of itself: events, their log, rates, and its status."""
