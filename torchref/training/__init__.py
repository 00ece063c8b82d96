"""Twins of jaxformer/training."""
