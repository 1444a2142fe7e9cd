"""The card: what its tool prints, what its errors mean, how it comes back."""
