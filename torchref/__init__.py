"""The twin: the same models in plain PyTorch, file by file."""
