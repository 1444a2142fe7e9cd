"""From an installed model to a running engine."""
