"""The registry: algorithms, task families and outer updates by name, as installed packages offer them.

Standard library only, so that ``metarl list`` answers at once; nothing of the toolkit may come in. Start reading in
``registry``; ``sources`` reads what a plugin says of itself without importing it.
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
    "load",
    "name_of",
    "recipes",
]
