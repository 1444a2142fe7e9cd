"""The commands of qwen-service, one module each."""
