"""A run planned before there is a device: memory, FLOPs, traffic, predicted step time."""
