"""Recipes: one runnable training a file, `python -m train.gpt_stdlib --help`."""
