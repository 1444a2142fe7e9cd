"""The card: reading its state, explaining its errors, bringing it back when it is lost."""
