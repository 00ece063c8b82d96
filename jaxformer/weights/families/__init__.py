"""Other people's models: one file per family, with a table for each form that its weights have."""
