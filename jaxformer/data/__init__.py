"""Floor 3: from files to tokens to batches."""
