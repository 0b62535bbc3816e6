"""The procedural world `scenes`: images and texts made from a seed, written in the real formats."""
