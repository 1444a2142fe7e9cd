"""Prompts and replies as text: templates, tokenizers, parsers, grammars."""
