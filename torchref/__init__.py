"""The twin: the same models in plain PyTorch, file beside file."""
