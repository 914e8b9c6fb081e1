"""Token mixers, one family a file; a file added here is a mixer added."""
