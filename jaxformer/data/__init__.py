"""Text: corpora, tokenizers, prepared tokens and training batches."""
