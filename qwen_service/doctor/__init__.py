"""The checks of `qwen-service doctor`."""
