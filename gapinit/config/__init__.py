"""What a user writes: checked settings, runs, experiments, methods, stage versions. No torch."""
