"""The HTTP side: the server, what every request passes, the API dialects, admin, health and the page."""
