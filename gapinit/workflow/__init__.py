"""What the Snakefile asks: the plan, doctor, progress, cluster."""
