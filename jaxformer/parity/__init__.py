"""Floor 5: the proofs against PyTorch, and the planted bugs that prove the proofs."""
