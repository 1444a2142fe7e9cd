"""Ears and a voice: speech to text and text to speech."""
