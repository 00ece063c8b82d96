"""`jaxformer train RECIPE`: run a recipe, by its name or as a file of one's own."""

from collections.abc import Sequence

from jaxformer.cli.recipes import RECIPES, load_recipe, summaries
from jaxformer.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Run the recipe that the first word names, with the words after it; its exit status.

    Raises:
        UserError: for a recipe that is not there or cannot be loaded.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    if argv[0].startswith("-"):
        raise UserError(f"no recipe named first: choose one of {', '.join(RECIPES)}")
    return load_recipe(argv[0]).main(list(argv[1:]))


def _help() -> str:
    width = max(map(len, RECIPES))
    rows = [f"  {name:{width}}  {summary}" for name, summary in summaries().items()]
    return "\n".join(
        [
            "usage: jaxformer train RECIPE [FLAGS]",
            "       jaxformer train my/recipe.py [FLAGS]",
            "       jaxformer train RECIPE --help",
            "",
            "recipes:",
            *rows,
        ]
    )
