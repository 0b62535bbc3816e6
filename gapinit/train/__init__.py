"""Stage `train`: the trunk cache, the training loop, the step log."""
