"""OpenAI's Responses API: /v1/responses, which keeps nothing between requests."""
