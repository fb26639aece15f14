"""What people are told of a run: events, journal, status, report."""
