"""A search space for one experiment: read, checked against its options, and drawn from."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_type_hints

from metarl import plugins
from metarl.networks import Network
from metarl.training import Experiment, with_architecture, with_options
from metarl.tuning.ranges import Draws, Table, corners, drawn, parsed, without

PARTS = ("algorithm", "tasks", "outer", "settings")
SEARCHED_SETTINGS = ("meta_batch_size",)
"""The other settings say how trials run and are judged, which must be the same for all."""
IMAGE = 3
"""Axes of an image: channel, height, width."""


class Space(NamedTuple):
    """The options that are searched, by part of the experiment and field."""

    table: Table
    where: str
    """Where they are from, for messages."""

    def draw(self, draws: Draws, share: float) -> dict[str, Any]:
        """Draw a trial's options. ``share`` is how much of the search is done, 0 to 1."""
        return {part: drawn(table, draws, part, share) for part, table in self.table.items()}


def space_for(experiment: Experiment, given: str | Mapping[str, Any] = "default", fixed: Sequence[str] = ()) -> Space:
    """Return the search space of an experiment.

    ``given`` is the name of an installed space, a TOML file, or ranges by part and field. ``fixed`` are the dotted
    names of options that are not searched, such as ``algorithm.step_size``.

    Raises:
        PluginError: there is no such space or option, or the file is invalid.
        ValueError: a range is empty or of the wrong type, or nothing is left to search.
    """
    where, contents = "space", given
    if isinstance(given, str):
        file = plugins.find_space(given)
        where, contents = file.where, _chosen(file, experiment)
    assert not isinstance(contents, str)
    if strange := sorted(set(contents) - set(PARTS)):
        raise ValueError(f"{where} has {strange[0]!r}: expected some of {', '.join(PARTS)}")
    for name in contents.get("settings", {}):
        if name not in SEARCHED_SETTINGS:
            raise ValueError(f"{where}: settings.{name} cannot be searched: of the settings, only meta_batch_size can")
    tables = {part: parsed(table, f"{where}: {part}") for part, table in contents.items()}
    space = Space(without(tables, fixed), where)
    check(space, experiment)
    return space


def _chosen(file: plugins.SpaceFile, experiment: Experiment) -> dict[str, Any]:
    """Return the tables of a file that are about an experiment, by part."""
    names = dict(zip(("algorithm", "tasks", "outer"), experiment.names, strict=True))
    found = {part: dict(file.tables.get(part, {}).get(name, {})) for part, name in names.items()}
    found["settings"] = dict(file.tables.get("settings", {}))
    network = file.tables.get("network", {}).get(_inputs(experiment))
    if network and not isinstance(getattr(experiment.algorithm, "network", None), Network):
        raise ValueError(f"{file.where} searches networks, and {names['algorithm']} has no options of a network")
    if network:
        found["algorithm"]["network"] = {**network, **found["algorithm"].get("network", {})}
    if not any(found.values()):
        asked = ", ".join(f"{part}.{name}" for part, name in names.items())
        known = ", ".join(f"{part}.{name}" for part, table in file.tables.items() for name in table)
        raise ValueError(f"{file.where} has nothing to search for {asked} on {_inputs(experiment)}: it has {known}")
    return {part: table for part, table in found.items() if table}


def _inputs(experiment: Experiment) -> str:
    return "images" if len(experiment.tasks.spec.input_shape) == IMAGE else "vectors"


def check(space: Space, experiment: Experiment) -> None:
    """Raise ValueError or PluginError unless the ends of all ranges, one at a time, are options of the experiment."""
    found = [dict(zip(PARTS, _corner(space, part, corner), strict=False)) for part, corner in _corners(space)]
    if len(found) < 2:
        raise ValueError(f"{space.where} leaves nothing to search: all its options are fixed")
    for number, values in enumerate(found):
        tried = applied(experiment, values, space.where)
        if number == 0:
            tried.algorithm.build(tried.tasks.spec)


def _corners(space: Space) -> Iterator[tuple[str, dict[str, Any]]]:
    for part, table in space.table.items():
        for corner in corners(table):
            yield part, corner


def _corner(space: Space, part: str, corner: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the options of all parts: a corner of one, and the lowest of the others."""
    return [
        corner if other == part else corners(space.table[other])[0] if other in space.table else {} for other in PARTS
    ]


def applied(experiment: Experiment, values: Mapping[str, Mapping[str, Any]], where: str) -> Experiment:
    """Return an experiment with other options, by part and field. Raises PluginError for what cannot be."""
    architecture = values.get("algorithm", {}).get("network", {}).get("architecture")
    changed = with_architecture(experiment, architecture)
    parts = {
        part: with_options(getattr(changed, part), options, f"{where}: {part}")
        for part, options in values.items()
        if options
    }
    return dataclasses.replace(changed, **parts)


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options by their dotted names, such as ``algorithm.step_size``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def words(experiment: Experiment, values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the words of a command line that give a trial's options."""
    found = list[str]()
    for part, options in values.items():
        found += _words(getattr(experiment, part), options, "" if part == "settings" else f"{part}.")
    return found


def _words(target: Any, options: Mapping[str, Any], prefix: str) -> Iterator[str]:
    hints = get_type_hints(type(target), include_extras=True)
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, Mapping):
            unnamed = any(getattr(mark, "name", None) == "" for mark in getattr(hints[name], "__metadata__", ()))
            yield from _words(getattr(target, name), value, prefix if unnamed else f"{prefix}{option}.")
        elif isinstance(value, bool):
            yield f"--{prefix}{'' if value else 'no-'}{option}"
        else:
            yield f"--{prefix}{option}"
            yield from map(str, value if isinstance(value, list | tuple) else [value])
