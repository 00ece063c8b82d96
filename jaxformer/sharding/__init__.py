"""The device mesh, and the sharding of every parameter and batch on it."""
