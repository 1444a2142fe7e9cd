"""Anthropic's Messages API: /v1/messages, count_tokens, and the list of models in its shape."""
