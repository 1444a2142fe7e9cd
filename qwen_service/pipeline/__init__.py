"""One request from ChatRequest to Events: fitting, waiting, generating, parsing."""
