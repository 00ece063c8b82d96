"""Floor 3: parameters to and from PyTorch, by tables."""
