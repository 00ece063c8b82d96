"""Whole models, and how one becomes a graph and a pytree of parameters."""
