"""The plugin registry: algorithms, task families and outer updates of installed packages, by name.

It imports only the standard library and nothing else of metarl, so that ``metarl list`` is fast. Start reading in
``registry``. ``sources`` reads a plugin's docstring without importing it.
"""

from metarl.plugins.recipes import DEFAULT, NONE, Recipe, find_recipe, recipes
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
    "Recipe",
    "available",
    "find_again",
    "find_recipe",
    "group_of",
    "import_attribute",
    "installed",
    "load",
    "name_of",
    "recipes",
]
