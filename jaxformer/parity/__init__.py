"""The proofs against PyTorch, and the planted bugs that prove the proofs."""
