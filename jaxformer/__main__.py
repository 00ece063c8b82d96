"""`python -m jaxformer` is the command `jaxformer`."""

from jaxformer.cli.main import main

if __name__ == "__main__":  # a spawned worker process imports this file under another name
    main()
