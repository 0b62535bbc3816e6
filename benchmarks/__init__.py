"""Benchmarks: gapinit and a peer alternate in one process; the result is the ratio of times."""
