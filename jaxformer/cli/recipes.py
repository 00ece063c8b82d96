"""Recipes: Python files that train, found by name or by path, and what they call.

A recipe is a file with a docstring, a table `PRESETS` of whole configurations, the default one
first, and a function `main(argv) -> exit status`. It is loaded by its path and never imported as
part of a package: a user's own train.py is not in its way.
"""

import ast
import contextlib
import dataclasses
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal, TypeVar

import tyro

from jaxformer.cli.arguments import fail, last_value, parse, run_command
from jaxformer.cli.help import HELP
from jaxformer.config import RunConfig, RunOptions
from jaxformer.errors import UserError, perhaps
from jaxformer.runtime.restarts import supervise

ConfigT = TypeVar("ConfigT", bound=RunConfig)
OptionsT = TypeVar("OptionsT")

_PACKAGE = Path(__file__).parents[1]
HOME = next(place for place in (_PACKAGE / "recipes", _PACKAGE.parent / "train") if place.is_dir())
"""Directory of the recipes: part of an installed package, `train/` of a checkout."""
RECIPES = tuple(sorted(path.stem for path in HOME.glob("[a-z]*.py")))
"""Their names."""
USUAL = (
    *("--preset", "--config", "--print-config", "--run-dir", "--resume", "--init-from"),
    *("--stop-after", "--steps", "--batch-size", "--batch-tokens", "--seed", "--data.*"),
    "--compile-cache",
)
"""Patterns of the flags that a recipe's `--help` shows."""


def summaries() -> dict[str, str]:
    """The first line of each recipe's docstring, by name; nothing is imported."""
    sources = {name: (HOME / f"{name}.py").read_text(encoding="utf-8") for name in RECIPES}
    docstrings = {name: ast.get_docstring(ast.parse(text)) or "" for name, text in sources.items()}
    return {name: text.partition("\n")[0] for name, text in docstrings.items()}


def load_recipe(name: str) -> ModuleType:
    """The recipe of this name, or of this path to a file that ends in .py.

    Raises:
        UserError: there is no such recipe, or the file cannot be loaded or lacks PRESETS or `main`.
    """
    if name in RECIPES:
        return _load(HOME / f"{name}.py")
    if not name.endswith(".py"):
        shown = name if name.strip() else repr(name)
        raise UserError(
            f"recipe {shown} is unknown{perhaps(name, RECIPES)}; choose one of "
            f"{', '.join(RECIPES)}, or name a file that ends in .py"
        )
    file = Path(name)
    if not file.is_file():
        raise UserError(f"recipe {name} is not a file: name one that is there")
    sys.path.insert(0, str(file.parent.resolve()))  # as Python does: it may import its neighbours
    recipe = _load(file)
    if not (isinstance(getattr(recipe, "PRESETS", None), Mapping) and recipe.PRESETS):
        raise UserError(f"{name} is no recipe: it needs a table PRESETS of configurations")
    if not callable(getattr(recipe, "main", None)):
        raise UserError(f"{name} is no recipe: it needs a function main(argv)")
    return recipe


def _load(file: Path) -> ModuleType:
    name = f"jaxformer recipe {file.stem}"  # no import statement can mean it
    spec = importlib.util.spec_from_file_location(name, file.absolute())
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    sys.modules[name] = recipe
    try:
        spec.loader.exec_module(recipe)
    except UserError:
        raise
    except Exception as error:
        if os.environ.get("JAXFORMER_TRACEBACK") == "1":
            raise
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file.absolute())]
        line = f", line {lines[-1]}" if lines else ""
        raise UserError(
            f"{file}{line} cannot be loaded: {type(error).__name__}: {error}: mend it (set "
            "JAXFORMER_TRACEBACK=1 for the traceback)"
        ) from None
    return recipe


def run_recipe(file: str, main: Callable[[list[str]], int]) -> None:
    """Run a recipe that was started as a program: `python my/recipe.py --steps 9`.

    Args:
        file: `__file__` of the recipe.
        main: of the recipe.

    Raises:
        SystemExit: as `run_command` does.
    """
    run_command(f"jaxformer train {_spelled(file)}", lambda: main(sys.argv[1:]))


def _spelled(file: str) -> str:
    """What `jaxformer train` calls a recipe: its name, or its path from the working directory."""
    path = Path(file).absolute()
    if path.parent == HOME:
        return path.stem
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def parse_recipe(
    presets: Mapping[str, ConfigT], argv: Sequence[str], file: str, description: str | None
) -> tuple[ConfigT, RunOptions]:
    """Read a recipe's flags: `--preset` names the defaults, the config's fields and the options of
    the run stand beside it at the top level (`--steps`, `--mesh.data`, `--run-dir`).

    The run directory defaults to `runs/` and the name of the recipe's file: `gpt_char` writes to
    `runs/gpt_char`. With `--resume` and no `--preset` the run's own config.json takes the place of
    the preset, so that no flag need be repeated. With `--restarts` the run is a child process, and
    this one ends with it.

    Args:
        presets: named configurations, the default one first.
        argv: the words after the recipe's name.
        file: `__file__` of the recipe.
        description: its docstring, which `--help` prints.

    Raises:
        SystemExit: as `parse` does, and with the status of a supervised run; an unknown preset is
            refused with the list of the known ones.
    """
    recipe = _spelled(file)
    prog = f"jaxformer train {recipe}"
    name = preset_name(presets, argv, prog)
    run = RunOptions(run_dir=Path("runs") / Path(file).stem)
    preset = presets[name]
    if "--resume" in argv and last_value("--preset", argv) is None:
        made_with = Path(last_value("--run-dir", argv) or run.run_dir) / "config.json"
        if made_with.is_file():
            with _refused(prog, argv):
                preset = _resumed(made_with, type(preset))
    config, options = parse_beside(run, presets, name, preset, argv, prog, description or "", USUAL)
    if options.restarts:
        raise SystemExit(supervise(recipe, argv, options))
    return config, options


def preset_name(presets: Mapping[str, ConfigT], argv: Sequence[str], prog: str) -> str:
    """The preset that the words name, or the first; an unknown one ends the program.

    So does a table that is none of configurations. Words that ask for help get it nevertheless.
    """
    for key, preset in presets.items():
        if not isinstance(key, str):
            fail(prog, f"PRESETS has the name {key!r}: name each preset by a text")
        if not isinstance(preset, RunConfig):
            kind = type(preset).__name__
            fail(prog, f"preset {key} is of type {kind}: make it a configuration of a run")
    first = next(iter(presets))
    name = last_value("--preset", argv) or first
    with _refused(prog, argv):
        if name not in presets:
            raise UserError(f"--preset {name} is unknown; choose one of {', '.join(presets)}")
    return name if name in presets else first


def parse_beside(
    options: OptionsT,
    presets: Mapping[str, ConfigT],
    name: str,
    preset: ConfigT,
    argv: Sequence[str],
    prog: str,
    description: str,
    usual: Sequence[str],
) -> tuple[ConfigT, OptionsT]:
    """A configuration and the options of a program, their fields beside each other as flags.

    `options` and `preset`, which goes by `name`, are the defaults; values of `--config FILE` stand
    between the preset's and those of other flags. `usual` are patterns of the flags that `--help`
    shows.

    Raises:
        SystemExit: as `parse` does, and with 0 after `--print-config`.
    """
    from jaxformer.tasks.config_io import config_to_json, with_values

    flat = tyro.conf.arg(name="")
    preset_help = "Named set of defaults; --config and other flags override its values."
    file_help = "JSON file, a run's config.json or a part of one; other flags override its values."
    print_help = "Print the whole configuration as JSON, as --config reads it, and end."
    file = last_value("--config", argv)
    with _refused(prog, argv, "--config "):
        preset = with_values(preset, Path(file)) if file else preset
    recipe = dataclasses.make_dataclass(
        "Recipe",
        [
            ("preset", Annotated[Literal[tuple(presets)], tyro.conf.arg(help=preset_help)]),
            ("file", Annotated[Path | None, tyro.conf.arg(name="config", help=file_help)]),
            ("print_config", Annotated[bool, tyro.conf.arg(help=print_help)]),
            ("run", Annotated[type(options), flat]),
            ("config", Annotated[type(preset), flat]),
        ],
        frozen=True,
    )
    default = recipe(name, None, False, options, preset)
    chosen = parse(recipe, argv, prog, description, default, usual)
    if chosen.print_config:
        print(json.dumps(config_to_json(chosen.config), indent=2))
        raise SystemExit(0)
    return chosen.config, chosen.run


def _resumed(config_file: Path, config_type: type[ConfigT]) -> ConfigT:
    from jaxformer.tasks.config_io import load_config

    config = load_config(config_file)
    if not isinstance(config, config_type):
        raise UserError(f"{config_file} is of another recipe: resume it with the one that made it")
    return config


@contextlib.contextmanager
def _refused(prog: str, argv: Sequence[str], what: str = "") -> Iterator[None]:
    """End the program with one line for bad input in the block, unless the words ask for help."""
    try:
        yield
    except (UserError, OSError) as error:
        if set(HELP) & set(argv):
            return
        if isinstance(error, OSError):
            raise
        fail(prog, f"{what}{error}")
