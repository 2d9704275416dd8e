"""The plugin registry: algorithms, task families and outer updates of installed packages, by name.

It imports only the standard library and nothing else of metarl, so that ``metarl list`` is fast. Start reading in
``registry``. ``sources`` reads a plugin's docstring without importing it; ``options`` checks what its options hold,
and ``schedules`` are those that change during training.
"""

from metarl.plugins.options import absolute_paths, checked_fields, checked_options, fitted, shortened
from metarl.plugins.pretrained import Pretrained, find_pretrained, is_pretrained, pretrained, run_folder
from metarl.plugins.recipes import DEFAULT, NONE, Recipe, find_recipe, recipe_hash, recipes
from metarl.plugins.registry import (
    GROUPS,
    NAME,
    Group,
    Plugin,
    PluginError,
    available,
    find_again,
    group_of,
    home,
    import_attribute,
    installed,
    is_nowhere,
    load,
    name_of,
    search_too,
)
from metarl.plugins.schedules import Schedule, Value, checked_schedules, fitting, linear, parsed, stepwise, with_values
from metarl.plugins.spaces import SpaceFile, find_space

__all__ = [
    "DEFAULT",
    "GROUPS",
    "NAME",
    "NONE",
    "Group",
    "Plugin",
    "PluginError",
    "Pretrained",
    "Recipe",
    "Schedule",
    "SpaceFile",
    "Value",
    "absolute_paths",
    "available",
    "checked_fields",
    "checked_options",
    "checked_schedules",
    "find_again",
    "find_pretrained",
    "find_recipe",
    "find_space",
    "fitted",
    "fitting",
    "group_of",
    "home",
    "import_attribute",
    "installed",
    "is_nowhere",
    "is_pretrained",
    "linear",
    "load",
    "name_of",
    "parsed",
    "pretrained",
    "recipe_hash",
    "recipes",
    "run_folder",
    "search_too",
    "shortened",
    "stepwise",
    "with_values",
]
