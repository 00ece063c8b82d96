"""Other people's models: one file per family, with a table for each form that its weights have, and
one of the settings in its config.json.
"""
