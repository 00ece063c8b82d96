"""Other tools' models in and out: import, export, and the same model run by both tools."""
