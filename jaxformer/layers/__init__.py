"""Floor 1: layers. Modules hold parameters, everything else is a function."""
