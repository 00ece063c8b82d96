"""Floor 5: what a training run is made of."""
