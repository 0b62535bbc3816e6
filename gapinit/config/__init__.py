"""The user's settings, runs, experiments, methods and stage versions. No torch."""
