"""How a model gets onto the disk: downloaded or adopted, verified, all at once."""
