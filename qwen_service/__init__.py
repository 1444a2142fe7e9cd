"""qwen-service: a chat server for Axera cards and for the CPU, with the OpenAI, Ollama and Anthropic dialects."""
