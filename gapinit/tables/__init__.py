"""Stage `tables`: scores, statistics, claims, published numbers, table formats."""
