"""Algorithms of linear recurrences, each shared by several mixers."""
