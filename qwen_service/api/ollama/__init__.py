"""The Ollama API: what its clients send and get, over the same pipeline as every other dialect."""
