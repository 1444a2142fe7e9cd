"""What happens to a request before a dialect sees it."""
