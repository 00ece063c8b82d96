"""Floor 3: parameters to and from PyTorch's names and axes, by tables of rows."""
