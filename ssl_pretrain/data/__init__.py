"""Cases on disk -> crops -> batches."""
