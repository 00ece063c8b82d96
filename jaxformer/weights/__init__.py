"""Parameters to and from PyTorch's names and axes, by tables of rows."""
