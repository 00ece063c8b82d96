"""Recipes: one runnable training per file, `jaxformer train gpt_stdlib --help`."""
