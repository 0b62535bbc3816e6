"""Side-by-side measurements: ours and the peer alternate in one run; ratios, not seconds, count."""
