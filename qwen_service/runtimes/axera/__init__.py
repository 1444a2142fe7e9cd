"""The vendor's REPL and API programs, driven through the tokenizer server that they call."""
