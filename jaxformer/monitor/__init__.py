"""What a run reports: metrics, progress, curves, and its watch over the losses."""
