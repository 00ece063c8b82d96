"""`jaxformer train RECIPE`: run a recipe, by its name or as a file of one's own."""

from collections.abc import Sequence

from jaxformer.cli.help import HELP, filled, table
from jaxformer.cli.recipes import RECIPES, load_recipe, summaries
from jaxformer.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Run the recipe that the first word names, with the words after it; its exit status.

    Raises:
        UserError: for a recipe that is not there or cannot be loaded.
    """
    if not argv or argv[0] in HELP:
        print(_help())
        return 0
    if argv[0].startswith("-"):
        raise UserError(f"no recipe named first: choose one of {', '.join(RECIPES)}")
    return load_recipe(argv[0]).main(list(argv[1:]))


def _help() -> str:
    usage = "usage: jaxformer train RECIPE [FLAGS]\n       jaxformer train RECIPE --help"
    own = "RECIPE may also be a file of your own that ends in .py: jaxformer train my/recipe.py"
    return f"{usage}\n\nrecipes:\n{table(summaries().items())}\n\n{filled(own)}"
