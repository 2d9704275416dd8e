"""Recipes: what ``metarl train ALGORITHM TASKS`` does when nothing else is said, and the scores that it reaches.

A family's recipes stand in one TOML file of its package, ``recipes/NAME.toml``, with a table for each algorithm and,
in it, one for each variant: ``[maml.default]`` is taken unless another is asked for. An algorithm's package may bring
recipes for other packages' families in the same way. Files are read without importing the package.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from metarl.plugins.registry import PluginError, available

DEFAULT, NONE = "default", "none"
"""The variant that is taken where none is named; and the word for no recipe."""
PARTS = ("algorithm", "tasks", "outer", "settings")
"""What a recipe may say the options of, by the names of the dataclasses' fields."""


@dataclass(frozen=True)
class Recipe:
    """Options that were found to work, and the scores that they reach."""

    name: str
    """``ALGORITHM/TASKS/VARIANT``"""
    file: Path
    """Where it is written."""
    reached: str
    """The scores that it reached; or that it was not yet trained to its end."""
    options: Mapping[str, Mapping[str, Any]]
    """Of each part, options by field; ``outer`` also has the update's ``name``."""

    def __str__(self) -> str:
        """Return the words that errors use for the recipe."""
        return f"the recipe {self.name} in {self.file}"


def recipes() -> list[Recipe]:
    """Return the recipes of all installed packages, by name. Raises PluginError for a file that is none."""
    plugins = *available("tasks"), *available("algorithms")
    packages = {plugin.value.partition(":")[0].partition(".")[0] for plugin in plugins}
    found = [recipe for package in packages for file in _files(package) for recipe in _read(file)]
    return sorted(found, key=lambda recipe: recipe.name)


def find_recipe(algorithm: str, tasks: str, variant: str | None = None) -> Recipe | None:
    """Return the recipe of a pair of names; None for ``none``, and where there is none and none was asked for.

    Raises:
        PluginError: there is no such variant; the message names those that exist. Or a file is damaged.
    """
    if variant == NONE:
        return None
    known = {recipe.name: recipe for recipe in recipes() if recipe.name.startswith(f"{algorithm}/{tasks}/")}
    found = known.get(f"{algorithm}/{tasks}/{variant or DEFAULT}")
    if found is None and variant is not None:
        names = ", ".join([*(name.rpartition("/")[2] for name in known), NONE])
        raise PluginError(f"{algorithm} on {tasks} has no recipe {variant!r}: expected {names}")
    return found


def _files(package: str) -> Iterator[Path]:
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield from sorted(Path(folder).glob("recipes/*.toml"))


def _read(file: Path) -> Iterator[Recipe]:
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PluginError(f"{file} is no file of recipes: {error}") from error
    for algorithm, variants in tables.items():
        named: dict[str, Any] = variants if isinstance(variants, dict) else {"": variants}
        for variant, recipe in named.items():
            name = f"{algorithm}/{file.stem}/{variant}"
            if wrong := _wrong(recipe):
                raise PluginError(f"{file}: {name} {wrong}")
            yield Recipe(name, file, recipe["reached"], {part: recipe.get(part, {}) for part in PARTS})


def _wrong(recipe: Any) -> str:
    """Return what is wrong with the form of a recipe; nothing where it is right."""
    if not isinstance(recipe, dict):
        return "is no table [ALGORITHM.VARIANT]"
    if not isinstance(recipe.get("reached"), str):
        return "does not say what it reached"
    if strange := sorted(set(recipe) - {*PARTS, "reached"}):
        return f"has {', '.join(strange)}: expected reached and some of {', '.join(PARTS)}"
    if flat := [part for part in PARTS if not isinstance(recipe.get(part, {}), dict)]:
        return f"has no table of options under {flat[0]}"
    return ""
