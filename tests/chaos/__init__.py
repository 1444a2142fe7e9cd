"""Faults at random against the whole service, in its own process, while clients use it. See docs/reliability.md.

python -m tests.chaos ax_repl --seconds 300 --seed 7
"""
