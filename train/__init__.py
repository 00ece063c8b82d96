"""Recipes: one runnable training per file, `python -m train.gpt_stdlib --help`."""
