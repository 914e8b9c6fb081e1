"""Figures, each drawn from a file of numbers that is kept beside it. Nothing here imports torch."""
