"""What `qwen-service doctor` looks at."""
