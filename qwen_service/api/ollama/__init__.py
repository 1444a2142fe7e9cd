"""The Ollama API, over the same pipeline as the other dialects."""
