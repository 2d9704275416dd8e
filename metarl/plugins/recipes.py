"""Recipes: the default options of ``metarl train ALGORITHM TASKS``, and the scores that they reach.

A family's recipes are in a TOML file of its package, ``recipes/NAME.toml``. It has a table for each algorithm and
variant: ``[maml.default]`` is used unless another variant is chosen. An algorithm's package can add recipes for
families of other packages in the same way. Files are read without importing the package.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from metarl.plugins.registry import PluginError, installed, offering, shipped

DEFAULT, NONE = "default", "none"
"""The variant that is used by default, and the name for "no recipe"."""
PARTS = ("algorithm", "tasks", "outer", "settings")
"""Tables of options in a recipe. Their keys are fields of the dataclasses."""


class Recipe(NamedTuple):
    """Options that are known to work, and the scores that they reach."""

    name: str
    """``ALGORITHM/TASKS/VARIANT``"""
    file: Path
    """The file that it was read from."""
    reached: str
    """The scores that it reached, or a note that it was not yet trained to the end. A note comes before them if its
    algorithm is not installed."""
    options: Mapping[str, Mapping[str, Any]]
    """Options of each part by field. ``outer`` also has the outer update's ``name``."""

    def __str__(self) -> str:
        """Return a short description for error messages."""
        return f"the recipe {self.name} in {self.file}"


def recipes() -> list[Recipe]:
    """Return the recipes of all installed packages, sorted by name. Raises PluginError for an invalid file."""
    unsorted = [recipe for file in _files() for recipe in _read(file)]
    known = {plugin.name for plugin in installed("algorithms")}
    return sorted((_noted(recipe, known) for recipe in unsorted), key=lambda recipe: recipe.name)


def find_recipe(algorithm: str, tasks: str, variant: str | None = None) -> Recipe | None:
    """Return the recipe for an algorithm and tasks; None for the variant ``none``, or if there is no default recipe.

    Raises:
        PluginError: the variant does not exist (the message lists those that do), or a file for these tasks is invalid.
    """
    if variant == NONE:
        return None
    own = [recipe for file in _files() if file.stem == tasks for recipe in _read(file)]  # no fault of others stops it
    known = {recipe.name: recipe for recipe in own if recipe.name.startswith(f"{algorithm}/{tasks}/")}
    recipe = known.get(f"{algorithm}/{tasks}/{variant or DEFAULT}")
    if recipe is None and variant is not None:
        names = ", ".join([*(name.rpartition("/")[2] for name in known), NONE])
        raise PluginError(f"{algorithm} on {tasks} has no recipe {variant!r}: expected {names}")
    return recipe


def recipe_hash(name: str) -> str:
    """Return the SHA-256 of the file that holds an installed recipe. Raises PluginError if there is none."""
    found = find_recipe(*name.split("/"))
    if found is None:
        raise PluginError(f"no recipe is called {name!r}; `metarl list recipes` shows all names")
    return hashlib.sha256(found.file.read_bytes()).hexdigest()


def _files() -> Iterator[Path]:
    for package in offering("tasks") | offering("algorithms"):
        yield from shipped(package, "recipes/*.toml")


def _noted(recipe: Recipe, known: set[str]) -> Recipe:
    """Return the recipe, with a note if no installed algorithm has its name: another package may bring it."""
    algorithm = recipe.name.partition("/")[0]
    if algorithm in known or ":" in algorithm:
        return recipe
    return recipe._replace(reached=f"no algorithm {algorithm!r} is installed; {recipe.reached}")


def _read(file: Path) -> Iterator[Recipe]:
    import tomllib  # imported here: `metarl list` reads no recipes, and this would take a tenth of its time

    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PluginError(f"{file} is not a valid file of recipes: {error}") from error
    for algorithm, variants in tables.items():
        named: dict[str, Any] = variants if isinstance(variants, dict) else {"": variants}
        for variant, recipe in named.items():
            name = f"{algorithm}/{file.stem}/{variant}"
            if problem := _problem(recipe):
                raise PluginError(f"{file}: {name} {problem}")
            yield Recipe(name, file, recipe["reached"], {part: recipe.get(part, {}) for part in PARTS})


def _problem(recipe: Any) -> str:
    """Return what is wrong with the form of a recipe; empty if it is valid."""
    if not isinstance(recipe, dict):
        return "is not a table [ALGORITHM.VARIANT]"
    if not isinstance(recipe.get("reached"), str):
        return "does not say what it reached"
    if strange := sorted(set(recipe) - {*PARTS, "reached"}):
        return f"has {', '.join(strange)}: expected reached and some of {', '.join(PARTS)}"
    if flat := [part for part in PARTS if not isinstance(recipe.get(part, {}), dict)]:
        return f"has no table of options under {flat[0]}"
    name = recipe.get("outer", {}).get("name", "")
    if not isinstance(name, str):
        return f"has outer.name = {name!r}: expected the name of an outer update, such as 'trpo'"
    return ""
