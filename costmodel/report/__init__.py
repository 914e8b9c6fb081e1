"""Answers as people read them, in a terminal or a file, and as JSON."""
