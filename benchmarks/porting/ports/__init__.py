"""The half of the ports that was written together with `jaxformer.porting`."""
