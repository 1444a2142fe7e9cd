"""The vendor's `axllm serve`."""
