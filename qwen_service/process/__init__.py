"""Child processes: the only subprocess code."""
