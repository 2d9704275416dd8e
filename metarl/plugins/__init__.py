"""The plugin registry: algorithms, task families and outer updates of installed packages, by name.

It imports only the standard library and nothing else of metarl, so that ``metarl list`` is fast. Start reading in
``registry``. ``sources`` reads a plugin's docstring without importing it; ``options`` checks what its options hold.
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
    import_attribute,
    installed,
    load,
    name_of,
)

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
    "absolute_paths",
    "available",
    "checked_fields",
    "checked_options",
    "find_again",
    "find_pretrained",
    "find_recipe",
    "fitted",
    "group_of",
    "import_attribute",
    "installed",
    "is_pretrained",
    "load",
    "name_of",
    "pretrained",
    "recipe_hash",
    "recipes",
    "run_folder",
    "shortened",
]
