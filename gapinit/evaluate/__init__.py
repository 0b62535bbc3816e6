"""Stage `evaluate`: image features, predictions, metrics."""
