"""Decoding: cached generation, beam search, sampling filters, stop strings."""
