"""The packages that pip installs; everything else about them is in pyproject.toml.

The recipes of `train/` are installed as `jaxformer.recipes`: a package called `train` would be in
the way of a user's own train.py, and that in the way of the recipes.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["jaxformer*", "torchref*"]), "jaxformer.recipes"],
    package_dir={"jaxformer.recipes": "train"},
)
