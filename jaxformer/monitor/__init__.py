"""Floor 5: what a run reports: metrics, progress, curves, and its watch over the losses."""
