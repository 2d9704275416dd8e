"""An experiment: algorithm, task family, outer update and settings, from a recipe or a command line."""

import dataclasses
import difflib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from metarl import plugins
from metarl.outer import default_outer
from metarl.plugins import PluginError, Recipe, find_recipe, name_of
from metarl.speed import usual_modes
from metarl.trained import Trained
from metarl.training.progress import Callback
from metarl.training.settings import Settings, default_settings
from metarl.training.start import Make, Source, source, start
from metarl.types import Algorithm, Family, Outer


class Experiment(NamedTuple):
    """An algorithm, the tasks that it is trained on, the outer update, and the settings of training."""

    algorithm: Algorithm
    family: Family
    outer: Outer
    settings: Settings
    names: tuple[str, str, str]
    """Names of algorithm, family and outer update, as recorded in the run folder."""
    recipe: str | None = None
    """Name of the recipe, if any."""

    @usual_modes()
    def train(
        self,
        out: Path | str | None = None,
        overwrite: bool = False,
        quiet: bool = True,
        callbacks: Sequence[Callback] = (),
    ) -> Trained:
        """Meta-train; see ``metarl.train``."""
        algorithm, family, outer = map(Source, self[:3], self.names)
        run = start(algorithm, family, outer, self.settings, out, overwrite, recipe=self.recipe)
        return run.train(run.first(), quiet, callbacks)


def recipe(
    algorithm: str,
    tasks: str,
    variant: str | None = None,
    outer: str | None = None,
    make: Mapping[plugins.Group, Make] = MappingProxyType({}),
) -> Experiment:
    """Return the experiment of ``metarl train ALGORITHM TASKS``: with their recipe, or with defaults if there is none.

    ``variant`` selects another recipe, such as "paper", or "none". ``outer`` is the name of another outer update, with
    its default options. ``make`` says how classes of a group become objects, where not by their default options.

    Raises:
        PluginError: a plugin or the recipe does not exist, or the recipe has unknown options.
    """
    chosen = find_recipe(algorithm, tasks, variant)
    groups: dict[plugins.Group, str] = {"algorithms": algorithm, "tasks": tasks}
    method, family = (source(group, name, make.get(group, type.__call__)).target for group, name in groups.items())
    if chosen is not None:
        method = with_options(method, chosen.options["algorithm"], f"{chosen}: algorithm")
        family = with_options(family, chosen.options["tasks"], f"{chosen}: tasks")
    settings = default_settings(family.spec)
    if chosen is not None:
        settings = with_options(settings, chosen.options["settings"], f"{chosen}: settings")
    update, name = _outer(chosen, outer, default_outer(method, family.spec))
    return Experiment(method, family, update, settings, (algorithm, tasks, name), chosen.name if chosen else None)


def _outer(chosen: Recipe | None, requested: str | None, default: Outer) -> tuple[Outer, str]:
    """Return the outer update and its name: the requested one, else the recipe's, else the default."""
    options = dict(chosen.options["outer"]) if chosen else {}
    own = name_of("outers", type(default))
    name = options.pop("name", own)
    if requested is not None and requested != name:
        return source("outers", requested).target, requested
    update = default if name == own else source("outers", name).target
    return with_options(update, options, f"{chosen}: outer"), name


def with_options(target: Any, options: Mapping[str, Any], where: str) -> Any:
    """Return a frozen dataclass with options from TOML. Nested tables set options of nested dataclasses.

    Raises:
        PluginError: an option does not exist, or its value has the wrong type or is invalid.
    """
    if not options:
        return target
    fields = {field.name: getattr(target, field.name) for field in dataclasses.fields(target) if field.init}
    hints, changes = get_type_hints(type(target)), {}
    for name, value in options.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise PluginError(f"{where} has no option {name!r}{hint}")
        if dataclasses.is_dataclass(fields[name]) and isinstance(value, Mapping):
            changes[name] = with_options(fields[name], value, f"{where}.{name}")
        else:
            changes[name] = _typed(hints[name], value, f"{where}.{name}")
    try:
        return dataclasses.replace(target, **changes)
    except ValueError as error:
        raise PluginError(f"{where}: {error}") from error


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Convert a value from TOML to an option's type: lists become tuples, and integers floats where needed."""
    value = tuple(value) if isinstance(value, list) else value
    if not _fits(hint, value):
        raise PluginError(f"{where} is {value!r}: expected {getattr(hint, '__name__', hint)}")
    return float(value) if hint is float else value


def _fits(hint: Any, value: Any) -> bool:
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        return any(_fits(part, value) for part in parts)
    if kind is Literal:
        return value in parts
    if kind is tuple:
        each = parts[:1] * len(value) if isinstance(value, tuple) and parts[-1] is Ellipsis else parts
        return isinstance(value, tuple) and len(value) == len(each) and all(map(_fits, each, value))
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return not isinstance(hint, type) or isinstance(value, hint)
