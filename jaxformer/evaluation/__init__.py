"""How good a trained run is: loss, BLEU, baselines, attention maps."""
