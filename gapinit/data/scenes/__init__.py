"""The procedural world `scenes`: images and texts from a seed, in the real datasets' formats."""
