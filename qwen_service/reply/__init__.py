"""From what a model writes to what was asked for: tags, tool calls, JSON."""
