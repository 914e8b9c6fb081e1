"""Distributed algorithms, one file each; a file added here is a strategy added."""
