"""Twins of jaxformer/decoding."""
