"""An experiment: algorithm, task family, outer update and settings, from Python, a recipe or a command line."""

import dataclasses
import difflib
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from metarl import origins, plugins, runs
from metarl.files import expanded
from metarl.networks import NETWORKS, Network
from metarl.outer import default_outer
from metarl.plugins import PluginError, Recipe, find_recipe, name_of
from metarl.runs import logger
from metarl.speed import ranks, usual_modes
from metarl.trained import Trained
from metarl.training.loop import Run
from metarl.training.progress import Callback
from metarl.training.settings import SCHEDULED, Settings, default_settings, scheduled
from metarl.types import Algorithm, ChecksSplits, Family, Outer, Params

References = tuple[str | None, str | None, str | None]


class Source(NamedTuple):
    """An algorithm, a family or an outer update, and the name or ``module:attribute`` that was asked for, if any."""

    target: Any
    reference: str | None = None


Make = Callable[[type], Any]


def source(group: plugins.Group, target: Any, make: Make = lambda kind: kind()) -> Source:
    """Return an object as it is, or load a name, of which ``make`` makes an object. Raises PluginError."""
    if not isinstance(target, str):
        return Source(target)
    loaded = plugins.load(group, target)
    try:
        return Source(make(loaded) if isinstance(loaded, type) else loaded, target)
    except TypeError as error:
        raise plugins.PluginError(
            f"{target} cannot be made without options ({error}): give its fields defaults, or bind an object of it to "
            "a name and pass 'module:name'"
        ) from error


@dataclass(frozen=True, init=False)
class Experiment:
    """An algorithm, the tasks that it is trained on, the outer update, and the settings of training.

    The first three are objects, or names as on the command line: installed ones, or ``module:name``. ``outer`` is by
    default the algorithm's own, else TRPO for control and Adam otherwise. ``dataclasses.replace`` makes another
    experiment, such as one with another seed. Two experiments are equal if their parts are.

    A run folder can record parts that it can make again: frozen dataclasses of plain options, or anything that is given
    as ``module:name``.

    Raises:
        ValueError: an option has the wrong type.
        PluginError: there is no plugin of that name, or it cannot be made by its defaults.
    """

    algorithm: Algorithm
    tasks: Family
    outer: Outer
    settings: Settings
    recipe: str | None = None
    """Name of the recipe, if any."""
    references: References = field(default=(None, None, None), repr=False, compare=False)
    """The names that algorithm, tasks and outer update were asked for by; None for objects."""

    def __init__(
        self,
        algorithm: Algorithm | str,
        tasks: Family | str,
        outer: Outer | str | None = None,
        settings: Settings | None = None,
        recipe: str | None = None,
        references: References = (None, None, None),
    ) -> None:
        groups: tuple[plugins.Group, ...] = ("algorithms", "tasks", "outers")
        method, family = (
            _settled(group, part, reference)
            for group, part, reference in zip(groups[:2], (algorithm, tasks), references[:2], strict=True)
        )
        if outer is None:
            outer = default_outer(method.target, family.target.spec)
        update = _settled(groups[2], outer, references[2])
        chosen = (settings or default_settings(family.target.spec)).filled(family.target.spec)
        names = method.reference, family.reference, update.reference
        values = method.target, family.target, update.target, chosen, recipe, names
        for item, value in zip(dataclasses.fields(self), values, strict=True):
            object.__setattr__(self, item.name, value)

    @property
    def names(self) -> tuple[str, str, str]:
        """Names of algorithm, tasks and outer update: those that were asked for, or those of their classes."""
        named = [source.reference or name_of(group, type(source.target)) for group, source in self.sources]
        return named[0], named[1], named[2]

    @property
    def sources(self) -> tuple[tuple[plugins.Group, Source], ...]:
        """Algorithm, tasks and outer update with their references, by the groups of the registry."""
        parts = map(Source, (self.algorithm, self.tasks, self.outer), self.references)
        return tuple(zip(("algorithms", "tasks", "outers"), parts, strict=True))

    @usual_modes()
    def train(
        self,
        out: Path | str | None = None,
        overwrite: bool = False,
        quiet: bool = True,
        start_from: Params | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Trained:
        """Meta-train; see ``metarl.train``."""
        run = self.start(out, overwrite, start_from)
        return run.train(run.first(), quiet, callbacks)

    def start(self, out: Path | str | None = None, overwrite: bool = False, start_from: Params | None = None) -> Run:
        """Check that everything fits together, and make the run folder, which only the first rank writes into.

        Raises ValueError; RankError where another rank fails.
        """
        folder = None if out is None else expanded(out).absolute()  # families may change the working folder
        check_logs(self.settings, folder)
        run = Run(self.algorithm, self.tasks, self.outer, self.settings, folder)
        run.experiment = self
        _check_splits(self.tasks, self.settings)
        run.start_from = start_from or {}
        first = run.first()._asdict() if start_from else None
        run.join()
        if folder is not None:
            with ranks.together(run.ranks):
                ranks.agreed("making the run folder", lambda: self._make_folder(run, overwrite, first))
        return run

    def _make_folder(self, run: Run, overwrite: bool, first: Mapping[str, Any] | None) -> None:
        if not ranks.is_first():
            run.folder = None
        elif run.folder is not None:
            record = self.record() | ({"start_from": runs.digests(run.start_from)} if run.start_from else {})
            run.claim = runs.create(run.folder, record, overwrite, first)

    def record(self) -> dict[str, Any]:
        """Return what ``config.json`` records of it, as plain data. Raises ValueError for what cannot be recorded."""
        parts = {name: runs.describe(*source) for name, (_, source) in zip(runs.GROUPS, self.sources, strict=True)}
        return {
            **parts,
            "settings": self.settings.record(),
            **origins.recorded_data(self.tasks),
            **origins.recorded_units(self.tasks),
            **self.definitions(parts),
            **self._recipe(),
        }

    def _recipe(self) -> dict[str, str]:
        if self.recipe is None:
            return {}
        return {"recipe": self.recipe, "recipe_sha256": plugins.recipe_hash(self.recipe)}

    def definitions(self, parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Return what defines the parts of a ``module:name``, see ``metarl.origins``; nothing if there are none."""
        targets = zip(runs.GROUPS, self.sources, strict=True)
        found = {name: origins.defined(source.target, parts[name]["reference"]) for name, (_, source) in targets}
        told = {name: definition for name, definition in found.items() if definition is not None}
        return {origins.DEFINITIONS: told} if told else {}


def _settled(group: plugins.Group, part: Any, reference: str | None) -> Source:
    """Return a part with options that mean the same elsewhere, and its name, unless it has become another's."""
    target, asked = source(group, part)
    target = plugins.absolute_paths(plugins.checked_options(target))
    return Source(
        target, asked or (reference if reference is not None and _stands_for(group, reference, target) else None)
    )


def _stands_for(group: plugins.Group, reference: str, target: Any) -> bool:
    """Return whether a name stands for the class of an object, or for an object of its class."""
    named = plugins.load(group, reference) if ":" not in reference else plugins.find_again(group, reference)
    return type(target) is (named if isinstance(named, type) else type(named))


def _check_splits(family: Family, settings: Settings) -> None:
    """Raise ValueError where test tasks, or validation tasks that are asked for, could never be sampled."""
    if not isinstance(family, ChecksSplits):
        return
    family.check_split("test")
    try:
        family.check_split("validation")
    except ValueError as error:
        if settings.validate_every is not None:
            raise
        warnings.warn(f"{error}: no validation will be possible", stacklevel=5)


def check_logs(settings: Settings, folder: Path | None) -> None:
    """Raise ValueError where a package that logs need is missing."""
    if folder is not None:
        logger.import_writers()
    for name, load in (("wandb", logger.import_wandb), ("mlflow", logger.import_mlflow)):
        if (place := getattr(settings, name)) is None:
            continue
        if folder is None:
            raise ValueError(f"{name}={place!r} needs a run folder: give out too")
        load()


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
    made = [source(group, name, make.get(group, type.__call__)) for group, name in groups.items()]
    method, family = (one.target for one in made)
    if chosen is not None:
        method = with_options(method, chosen.options["algorithm"], f"{chosen}: algorithm")
        family = with_options(family, chosen.options["tasks"], f"{chosen}: tasks")
    settings = default_settings(family.spec)
    if chosen is not None:
        settings = with_options(settings, chosen.options["settings"], f"{chosen}: settings")
    update, name = _outer(chosen, outer, default_outer(method, family.spec))
    if chosen is not None and outer is None:
        _check_schedules(chosen, settings, (method, family, update))
    return Experiment(method, family, update, settings, chosen.name if chosen else None, (algorithm, tasks, name))


def _outer(chosen: Recipe | None, requested: str | None, default: Outer) -> tuple[Outer, str]:
    """Return the outer update and its name: the requested one, else the recipe's, else the default."""
    options = dict(chosen.options["outer"]) if chosen else {}
    own = name_of("outers", type(default))
    name = options.pop("name", own)
    if requested is not None and requested != name:
        return source("outers", requested).target, requested
    try:
        update = default if name == own else source("outers", name).target
    except PluginError as error:
        raise PluginError(f"{chosen}: outer: {error}") from error
    return with_options(update, options, f"{chosen}: outer"), name


def _check_schedules(chosen: Recipe, settings: Settings, parts: Sequence[Any]) -> None:
    """Raise PluginError for a recipe's schedule of a field that its algorithm, tasks and outer update do not have."""
    try:
        scheduled(settings, dict(zip(SCHEDULED, parts, strict=True)), 0.0)
    except ValueError as error:
        raise PluginError(f"{chosen}: settings: {error}") from error


def with_architecture(experiment: Experiment, architecture: str | None) -> Experiment:
    """Return the experiment for a network that is asked for: a recipe's options of another one do not suit it."""
    network = getattr(experiment.algorithm, "network", None)
    if architecture is None or not isinstance(network, Network) or architecture == network.architecture:
        return experiment
    if architecture not in NETWORKS and ":" not in architecture:
        return experiment  # what is no architecture is refused when the options are read
    changed: Any = experiment.algorithm
    changed = dataclasses.replace(changed, network=network.with_architecture(architecture))
    return dataclasses.replace(experiment, algorithm=changed)


def with_options(target: Any, options: Mapping[str, Any], where: str) -> Any:
    """Return a frozen dataclass with options from TOML. Nested tables set options of nested dataclasses.

    Raises:
        PluginError: an option does not exist, or its value has the wrong type or is invalid.
    """
    if not options:
        return target
    own = dataclasses.fields(target) if dataclasses.is_dataclass(target) else ()
    fields = {field.name: getattr(target, field.name) for field in own if field.init}
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
