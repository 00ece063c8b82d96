"""The command `jaxformer`, one file per subcommand."""
