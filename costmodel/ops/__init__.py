"""The op vocabulary: primitives that each say everything about themselves, and the language made of them."""
