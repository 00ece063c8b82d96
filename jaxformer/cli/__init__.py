"""Floor 6: the command `jaxformer`, one file a subcommand."""
