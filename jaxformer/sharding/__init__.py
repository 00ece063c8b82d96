"""Floor 3: the mesh of devices and where each parameter lives on it."""
