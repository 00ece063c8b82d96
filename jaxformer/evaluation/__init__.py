"""Floor 6: how good a trained run is: loss, BLEU, baselines, attention maps."""
