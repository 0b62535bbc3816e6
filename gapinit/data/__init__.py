"""Datasets: the procedural `scenes` world, and loaders and checks for real caption datasets."""
