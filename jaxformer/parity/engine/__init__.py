"""What all proofs share: cases, model pairs, training pairs, settings, mutation testing."""
