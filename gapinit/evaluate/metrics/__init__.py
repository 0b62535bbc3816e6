"""Scores of predictions against their references. Nothing in here imports torch or pandas."""
