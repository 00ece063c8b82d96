"""Twins of jaxformer/layers."""
