"""Compare a JAX model with a PyTorch model, module by module; imports torch, not torchref."""
