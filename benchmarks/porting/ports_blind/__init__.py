"""The half of the ports that was written without a look at `jaxformer.porting`."""
