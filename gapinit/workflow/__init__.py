"""Code for the Snakefile and its users: plan, doctor, progress display, Slurm, verification."""
