"""The tests of the package, folder by folder."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the checkout
