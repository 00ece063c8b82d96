"""Twins of jaxformer/models."""
