"""GPT and the Transformer in JAX and Flax, proven equal to a minimal PyTorch twin."""
