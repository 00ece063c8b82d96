"""Floor 3: from logits to tokens to text, with a key-value cache."""
