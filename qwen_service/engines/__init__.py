"""Which model runs where: loading, watching, restarting, switching."""
