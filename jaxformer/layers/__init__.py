"""Layers. Modules hold parameters, everything else is a function."""
