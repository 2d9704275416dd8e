"""Search spaces: the options that ``metarl tune`` tries, in TOML files of installed packages, ``spaces/NAME.toml``.

A file has a table for each algorithm (``[algorithm.maml]``), family (``[tasks.NAME]``) and outer update
(``[outer.adam]``) that it knows, one for networks on vectors and one for those on images (``[network.vectors]``,
``[network.images]``), and ``[settings]``. Files are read without importing the package.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from metarl.plugins.registry import PluginError, offering, shipped

NAMED = ("algorithm", "tasks", "outer", "network")
"""Tables that hold a table for each plugin, or kind of input."""


class SpaceFile(NamedTuple):
    """Tables of options to search, as they are in files."""

    where: str
    """The file, or what stands for several of one name."""
    tables: Mapping[str, Mapping[str, Any]]


def find_space(name: str) -> SpaceFile:
    """Return a space: that of a file, or the one of this name in installed packages, all of them together.

    Raises PluginError if there is none, or a file is invalid.
    """
    if name.endswith(".toml") or "/" in name:
        return SpaceFile(name, _read(Path(name).expanduser()))
    files = [file for file in _installed() if file.stem == name]
    if not files:
        known = ", ".join(sorted({file.stem for file in _installed()}))
        raise PluginError(f"no search space is called {name!r}: expected {known}, or a file that ends with .toml")
    tables: dict[str, dict[str, Any]] = {}
    for file in files:
        for part, table in _read(file).items():
            tables[part] = {**tables.get(part, {}), **table}
    return SpaceFile(str(files[0]) if len(files) == 1 else f"the space {name!r}", tables)


def _installed() -> list[Path]:
    packages = offering("algorithms") | offering("tasks") | offering("outers")
    return [file for package in sorted(packages) for file in shipped(package, "spaces/*.toml")]


def _read(file: Path) -> Mapping[str, Mapping[str, Any]]:
    import tomllib  # imported here: `metarl list` reads no spaces

    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PluginError(f"{file} is not a valid search space: {error}") from error
    for part, table in tables.items():
        if part not in (*NAMED, "settings"):
            raise PluginError(f"{file} has {part}: expected some of {', '.join(NAMED)} and settings")
        if not isinstance(table, dict):
            raise PluginError(f"{file}: {part} is {table!r}: expected a table")
        flat = [name for name, inner in table.items() if part in NAMED and not _is_table(inner)]
        if flat:
            raise PluginError(f"{file}: {part}.{flat[0]} names no plugin: expected [{part}.NAME] above the options")
    return tables


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and not {"low", "high", "choices", "each"} & set(value)
