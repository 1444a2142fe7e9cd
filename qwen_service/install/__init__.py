"""Installs models: downloads or adopts them, verifies them, and puts them in place at once."""
