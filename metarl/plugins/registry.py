"""The plugin registry: algorithms, task families and outer updates of installed packages, by name.

Plugins are found and described without importing them. A plugin is imported when it is loaded. The entry-point groups
are ``metarl.algorithms``, ``metarl.tasks`` and ``metarl.outers``. So that listing is fast, it imports only what it
needs of the standard library.
"""

import difflib
import importlib
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from importlib import metadata
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

from metarl.plugins.sources import Trees, summary

Group = Literal["algorithms", "tasks", "outers"]
GROUPS: tuple[Group, ...] = ("tasks", "algorithms", "outers")

_KIND: dict[Group, str] = {"algorithms": "algorithm", "tasks": "task family", "outers": "outer update"}
_MEMBERS: dict[Group, tuple[str, ...]] = {
    "algorithms": ("build",),
    "tasks": ("sample", "spec"),
    "outers": ("init", "update"),
}
_SEARCHED: list[str] = []
"""Folders where modules that a user names are looked for, after all that are installed."""
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
"""Valid plugin names: lower-case words joined by hyphens."""


class PluginError(LookupError):
    """A plugin does not exist, is offered twice, cannot be imported, or lacks members that its group requires."""


class Plugin(NamedTuple):
    """Information about a plugin, read without importing it."""

    name: str
    group: Group
    value: str
    """``module:attribute``."""
    package: str
    """The distribution that offers it."""
    version: str
    """The version of that distribution."""
    summary: str = ""
    """First line of its docstring; empty if it cannot be read without importing."""
    problem: str = ""
    """Why it cannot be loaded, as far as this is known without importing; empty if no problem is known."""

    def __str__(self) -> str:
        """Return a short description for error messages."""
        return f"{_KIND[self.group]} {self.name!r} of {self.package} {self.version} ({self.value})"


def available(*groups: Group) -> list[Plugin]:
    """Return every installed plugin of some groups, group by group, sorted by name, without importing any.

    Raises ValueError for an unknown group.
    """
    plugins = installed(*groups)
    trees: Trees = {}  # a module that several plugins share is read once
    return [
        _described(
            plugin, [other for other in plugins if (other.group, other.name) == (plugin.group, plugin.name)], trees
        )
        for plugin in plugins
    ]


def installed(*groups: Group) -> list[Plugin]:
    """Return the same plugins without summaries or problems: faster, because it reads no sources.

    Raises ValueError for an unknown group.
    """
    for group in groups:
        if group not in _KIND:
            raise ValueError(f"unknown plugin group {group!r}: expected {' or '.join(map(repr, _KIND))}")
    entries = _entries(groups)
    return [plugin for group in groups for plugin in _of_group(group, entries[group])]


def _of_group(group: Group, entries: list[metadata.EntryPoint]) -> list[Plugin]:
    plugins = set()
    for package, offered in groupby(entries, key=lambda entry: entry.dist):
        title = _title(package)
        plugins |= {Plugin(entry.name, group, re.sub(r"\s|\[.*", "", entry.value), *title) for entry in offered}
    return sorted(plugins, key=lambda plugin: (plugin.name, plugin.package, plugin.value))


def offering(group: Group) -> set[str]:
    """Return the top-level packages that offer plugins of a group. Their sources are not read."""
    return {plugin.value.partition(":")[0].partition(".")[0] for plugin in installed(group)}


def shipped(package: str, pattern: str) -> Iterator[Path]:
    """Yield the files of a package that match a pattern beside its modules, sorted. The package is not imported."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield from sorted(Path(folder).glob(pattern))


def load(group: Group, name: str) -> Any:
    """Import and return a plugin by its installed name or ``module:attribute``.

    Raises PluginError if it does not exist, several packages offer it, importing it fails, or it lacks members that
    its group requires. Raises ValueError for an unknown group.
    """
    plugins = installed(group)
    if ":" in name:
        return _checked(group, import_attribute(name), f"the {_KIND[group]} {name}")
    plugin = _only([plugin for plugin in plugins if plugin.name == name], group, name)
    try:
        target = _imported(plugin.value)
    except PluginError as error:
        raise PluginError(f"cannot load the {plugin}: {error}") from (error.__cause__ or error)
    return _checked(group, target, f"the {plugin}")


def group_of(target: Any) -> Group:
    """Return the group whose members an object has. Raises ValueError if there is none."""
    for group, members in _MEMBERS.items():
        if all(hasattr(target, member) for member in members):
            return group
    raise ValueError(
        f"{target!r} is not an algorithm, a task family or an outer update; see metarl.types for what these are"
    )


def name_of(group: Group, kind: type) -> str:
    """Return the installed name of a class, or its ``module:attribute`` if it has none."""
    value = f"{kind.__module__}:{kind.__qualname__}"
    return next((plugin.name for plugin in installed(group) if plugin.value == value), value)


def home(group: Group, value: str) -> str | None:
    """Return the ``module:attribute`` of the installed plugin that a recorded one means; None if there is none.

    A class that has moved within its package since is known by its name. Nothing is imported.
    """
    package, name = value.partition(".")[0].partition(":")[0], value.partition(":")[2]
    values = {plugin.value for plugin in installed(group)}
    if value in values:
        return value
    near = [one for one in values if one.startswith((f"{package}.", f"{package}:")) and one.partition(":")[2] == name]
    return near[0] if len(near) == 1 else None


def is_nowhere(group: Group, value: str) -> bool:
    """Return whether a recorded ``module:attribute`` is nothing: the module or its package offers plugins, but not it.

    Its source is read, and nothing is imported.
    """
    module, attribute = _split(value)
    if not any(plugin.value.startswith((f"{module}.", f"{module}:")) for plugin in installed(group)):
        return False
    try:
        summary(module, attribute, {})
    except ImportError as error:
        return "does not define" in str(error)
    return False


def find_again(group: Group, value: str) -> Any:
    """Import and return a recorded ``module:attribute``, even if it has moved within its package since.

    If it is no longer there, it is looked up by its class name among the plugins of the same package.
    """
    moved = home(group, value) if group in GROUPS else None  # baselines are in no group
    if moved is None:
        return import_attribute(value)
    try:
        return _imported(value)
    except PluginError:
        return _imported(moved)


def search_too(folder: str) -> None:
    """Let ``module:attribute`` be found in a folder too, after all that is installed. Plugins are not looked for there.

    The folder joins ``sys.path`` when the first of them is imported, and not before: until then, no module of the
    folder can pass for another package.
    """
    if folder not in _SEARCHED:
        _SEARCHED.append(folder)


def import_attribute(value: str) -> Any:
    """Import and return ``module:attribute``. Raises PluginError that says which of the two failed."""
    sys.path.extend(folder for folder in _SEARCHED if folder not in sys.path)
    return _imported(value)


def _imported(value: str) -> Any:
    name, path = _split(value)
    try:
        target: Any = importlib.import_module(name)
    # SystemExit too: a script without a __main__ guard must not end this program.
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{name}.".startswith(f"{missing}."):
            raise PluginError(f"there is no module {missing!r}; is it installed, or on PYTHONPATH?") from error
        raise PluginError(f"importing {name!r} failed: {type(error).__name__}: {error}") from error
    for attribute in path.split("."):
        if not hasattr(target, attribute):
            near = _nearest(attribute, dir(target))
            raise PluginError(f"the module {name!r} was imported but has no attribute {path!r}{near}")
        target = getattr(target, attribute)
    return target


def _entries(groups: tuple[Group, ...]) -> dict[Group, list[metadata.EntryPoint]]:
    """Return the entry points of some groups. Damaged installations are left out with a warning."""

    def chosen(entries: Any) -> dict[Group, list[metadata.EntryPoint]]:
        return {group: list(entries.select(group=f"metarl.{group}")) for group in groups}

    # If sys.path has several copies of a distribution, entry_points() keeps the one that would be imported.
    try:
        return chosen(metadata.entry_points())
    except (OSError, TypeError, ValueError):
        pass  # one damaged installation spoils all: read each by itself
    found: dict[str, dict[Group, list[metadata.EntryPoint]]] = {}
    for package in metadata.distributions():
        folder = _folder(package)
        try:
            found.setdefault(folder.partition("-")[0].lower(), chosen(package.entry_points))
        except (OSError, TypeError, ValueError) as error:
            warnings.warn(f"{folder} is damaged, and its plugins are left out: {error}", stacklevel=2)
    return {group: [entry for entries in found.values() for entry in entries[group]] for group in groups}


def _folder(package: metadata.Distribution) -> str:
    path = getattr(package, "_path", None)
    return path.name if isinstance(path, Path) else "an unknown package"


def _title(package: metadata.Distribution | None) -> tuple[str, str]:
    """Return the name and the version of a distribution, as far as its metadata can be read."""
    try:
        about = package.metadata if package else None
        name, version = (about["Name"], about["Version"]) if about else (None, None)
    except (OSError, ValueError):  # it is not text
        name, version = None, None
    if package is not None and name is None:
        return f"a damaged {_folder(package)}", version or "of unknown version"
    return name or "an unknown package", version or ""


def _described(plugin: Plugin, namesakes: list[Plugin], trees: Trees) -> Plugin:
    """Return the plugin with its summary or its problem."""
    try:
        _only(namesakes, plugin.group, plugin.name)
        return plugin._replace(summary=summary(*_split(plugin.value), trees))
    except (PluginError, ImportError) as error:
        return plugin._replace(problem=str(error))


def _only(plugins: list[Plugin], group: Group, name: str) -> Plugin:
    """Return the only plugin with a name. Raises PluginError if there are none or several, or the name is invalid."""
    if not plugins:
        raise PluginError(_unknown(group, name))
    if len(plugins) > 1:
        offers = " and ".join(f"{plugin.package} {plugin.version} ({plugin.value})" for plugin in plugins)
        values = " or ".join(plugin.value for plugin in plugins)
        raise PluginError(f"{name!r} is offered by {offers}; uninstall all but one, or ask for {values}")
    if not NAME.fullmatch(name):
        raise PluginError(f"the name {name!r} is not lower-case words joined by hyphens; ask for {plugins[0].value}")
    return plugins[0]


def _unknown(group: Group, name: str) -> str:
    near = _nearest(re.sub(r"[\s_]+", "-", name.lower()), (plugin.name for plugin in installed(group)))
    for other in GROUPS:
        if other != group and any(plugin.name == name for plugin in installed(other)):
            near = f"; it is one of the {other}"
    return f"no {_KIND[group]} is called {name!r}{near}; `metarl list {group}` shows all names"


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(set(names)))
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def _split(value: str) -> tuple[str, str]:
    module, _, attribute = value.partition(":")
    if not module or not attribute:
        raise PluginError(f"{value!r} is not of the form module:attribute")
    return module, attribute


def _checked(group: Group, target: Any, title: str) -> Any:
    """Return target. Raises PluginError if it lacks members that its group requires."""
    fields = getattr(target, "__dataclass_fields__", {})
    missing = [member for member in _MEMBERS[group] if not hasattr(target, member) and member not in fields]
    if missing:
        raise PluginError(f"{title} has no {' and no '.join(map(repr, missing))}; metarl.types says what is required")
    return target
