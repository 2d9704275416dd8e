"""``metarl check PLUGIN``: run the contract tests of a plugin, and show what fails and where."""

import contextlib
import dataclasses
import difflib
import os
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_args

from tyro.conf import OmitArgPrefixes, arg

from metarl import plugins, runs, testing, training
from metarl.cli import DONE, FAILED, Execute
from metarl.commands.parsing import made_with, parse
from metarl.runs import logger
from metarl.speed import Device, resolve_device
from metarl.testing import Check, Fault, Found, Outcome, Verdict, raised_at, run_checks, small_family
from metarl.types import Family, Kind

KINDS: tuple[Kind, ...] = ("continuous", "discrete", "regression", "classification")

MEMBERS: dict[plugins.Group, str] = {"tasks": "sample", "algorithms": "build", "outers": "update"}
"""The member by which an object of each group is recognised."""
ON = arg(help="Names of families to check with (default: a small synthetic family of each kind).")

_IMPORTED = 99
"""Exit code of a process that has imported a plugin to its end."""

CHECK_HELP = """Run the contract tests of a plugin. A failed check shows what was found, what was expected, and where.

Exit codes: 0 if all checks pass, 1 if one fails, 2 if the request is invalid. 'metarl check NAME --help' also shows the
plugin's own options."""


TRIAL = 2
"""Iterations in which a recipe is tried."""
Makes = dict[plugins.Group, Callable[[type], Any]]


@dataclasses.dataclass(frozen=True)
class CheckOptions:
    """Options of ``metarl check``."""

    device: Device = "auto"
    """Device to check in addition to the CPU; auto uses cuda if it is available."""


def prepare(arguments: list[str]) -> Execute:
    """``[tasks|algorithms|outers] NAME [options]``: run the contract tests of a plugin."""
    if arguments in (["-h"], ["--help"]):
        parse(CheckOptions, ["--help"], "check NAME", CHECK_HELP)
    named: list[plugins.Group] = [group for group in plugins.GROUPS if arguments[:1] == [group]]
    name, *options = arguments[len(named) :] or [""]
    if not name or name.startswith("-"):
        raise ValueError("check needs a name, e.g. 'metarl check point-navigation'; 'metarl list' shows all")
    if (told := _ends_process(named, name)) is not None:
        return lambda: _report([("", [Outcome("import", "FAILED", (told,))])])
    group = named[0] if named else _group(name)
    try:
        prefix = {"tasks": "tasks", "algorithms": "algorithm", "outers": "outer"}[group]
        target = training.source(group, name, made_with(prefix, options, f"check {name}")).target
    except Exception as error:  # importing or building a plugin may raise anything
        if _nothing_to_check(error, name):
            raise
        check = "import" if isinstance(error, plugins.PluginError) else "make"  # what was imported failed afterwards
        outcome = Outcome(check, "FAILED", (f"{_message(error)}{raised_at(error)}",), error)
        return lambda: _report([("", [outcome])])
    checks = {"tasks": _families, "algorithms": _algorithms, "outers": _outers}
    return checks[group](name, target, options)


def _ends_process(groups: Sequence[plugins.Group], name: str) -> str | None:
    """Return how importing a plugin ends the process that imports it, as ``os._exit`` does; None if it does not.

    It is imported in a fork first. Where there are no forks, nothing is found out.
    """
    found = plugins.installed(*(groups or plugins.GROUPS))
    values = [name] if ":" in name else [plugin.value for plugin in found if plugin.name == name]
    modules = [value.partition(":")[0] for value in values]
    if not hasattr(os, "fork") or all(module in sys.modules for module in modules):
        return None
    with warnings.catch_warnings(action="ignore"):  # of forks beside threads: this one imports, and ends
        child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            for value in values:
                with contextlib.suppress(BaseException):
                    plugins.import_attribute(value)
        os._exit(_IMPORTED)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == _IMPORTED:
        return None
    how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
    return f"importing {' or '.join(modules)} ends the process that imports it, {how}"


def _group(name: str) -> plugins.Group:
    """Return the group of a name. Raises ValueError if it is in no group, or in several."""
    if ":" in name:
        target = plugins.import_attribute(name)
        groups = [group for group, member in MEMBERS.items() if hasattr(target, member)]
        problem = (
            f"{name} is not a plugin: task families have 'sample', algorithms have 'build', outer updates have 'update'"
        )
    else:
        names = {group: [plugin.name for plugin in plugins.installed(group)] for group in plugins.GROUPS}
        groups = [group for group in plugins.GROUPS if name in names[group]]
        near = difflib.get_close_matches(name, [one for group in plugins.GROUPS for one in names[group]])
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        problem = f"no task family, algorithm or outer update is called {name!r}{hint}; 'metarl list' shows all names"
    if len(groups) > 1:
        choices = " or ".join(f"'metarl check {group} {name}'" for group in groups)
        problem = f"{name} is in {len(groups)} groups: choose {choices}"
    if len(groups) != 1:
        raise ValueError(problem)
    return groups[0]


def _nothing_to_check(error: Exception, name: str) -> bool:
    """Return whether the plugin does not exist; otherwise, it exists and is broken."""
    if not isinstance(error, plugins.PluginError):
        return False
    return error.__cause__ is None or (":" in name and isinstance(error.__cause__, ModuleNotFoundError))


def _message(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, plugins.PluginError) else f"{type(error).__name__}: {text}"


def _families(name: str, family: Any, arguments: list[str]) -> Execute:
    """Check a family with the given options."""
    options = _options(("tasks", type(family), family))
    chosen = parse(options, arguments, f"check {name}", f"Check the task family {name}.")
    resolve_device(chosen.request.device)
    own = [recipe for recipe in plugins.recipes() if recipe.name.split("/")[1] == name]
    make: Makes = {"tasks": made_with("tasks", arguments, f"check {name}")}

    def execute() -> int:
        with logger.open_bar(f"checking {name}") as watch:
            outcomes = testing.family_outcomes(chosen.tasks, device=chosen.request.device, watch=watch)
        return _report([("", [*outcomes, *_recorded(chosen.tasks, name), *_recipes_tried(own, make)])])

    return execute


def _recipes_tried(recipes: Sequence[plugins.Recipe], make: Makes) -> list[Outcome]:
    """Train by each recipe for a few iterations of few tasks."""

    def trial(recipe: plugins.Recipe) -> Check:
        def run(_: Any) -> Found:
            algorithm, tasks, variant = recipe.name.split("/")
            experiment = training.recipe(algorithm, tasks, variant, make=make)
            few = dataclasses.replace(experiment.settings, iterations=TRIAL, meta_batch_size=2, checkpoint_every=1)
            dataclasses.replace(experiment, settings=few).train()
            yield from ()

        return Check("recipe", f"{recipe.name} trains for {TRIAL} iterations", run)

    return [outcome for recipe in recipes for outcome in run_checks([trial(recipe)], recipe)]


def _algorithms(name: str, algorithm: Any, arguments: list[str]) -> Execute:
    """Check an algorithm with the given options on some families."""
    options = _options(("algorithm", type(algorithm), algorithm), ("tasks", Annotated[tuple[str, ...], ON], ()))
    chosen = parse(options, arguments, f"check {name}", f"Check the algorithm {name}.")
    families, brought = _chosen_families(chosen), _brought_by(chosen.algorithm, name)

    def learning(family: Family) -> list[Outcome]:
        return testing.algorithm_outcomes(chosen.algorithm, family, device=chosen.request.device)

    return lambda: _on_families("algorithm", name, chosen.algorithm, families, learning, brought)


def _outers(name: str, outer: Any, arguments: list[str]) -> Execute:
    """Check an outer update with the given options on some families."""
    by = arg(name="algorithm", help="Name of the algorithm to check with (default: a small MAML).")
    options = _options(
        ("outer", type(outer), outer),
        ("tasks", Annotated[tuple[str, ...], ON], ()),
        ("algorithm", Annotated[str | None, by], None),
    )
    chosen = parse(options, arguments, f"check {name}", f"Check the outer update {name}.")
    families = _chosen_families(chosen)
    algorithm = None if chosen.algorithm is None else training.source("algorithms", chosen.algorithm).target

    def moving(family: Family) -> list[Outcome]:
        return testing.outer_outcomes(chosen.outer, family, algorithm, device=chosen.request.device)

    what = "outer update" if algorithm is None else f"outer update, or {chosen.algorithm},"
    return lambda: _on_families(what, name, chosen.outer, families, moving)


def _options(*parts: tuple[Any, ...]) -> type[Any]:
    return dataclasses.make_dataclass("Check", [("request", OmitArgPrefixes[CheckOptions], CheckOptions()), *parts])


def _chosen_families(chosen: Any) -> dict[str, Family]:
    """Return the families to check with, by title. Raises ValueError for a device that is not available."""
    resolve_device(chosen.request.device)
    synthetic: dict[str, Family] = {f"synthetic {kind} tasks": small_family(kind) for kind in KINDS}
    return {name: training.source("tasks", name).target for name in chosen.tasks} or synthetic


def _on_families(
    what: str,
    name: str,
    target: Any,
    families: dict[str, Family],
    outcomes: Callable[[Family], list[Outcome]],
    brought: Sequence[plugins.Recipe] = (),
) -> int:
    """Report the outcomes of the checks on each family. At least one of them must be supported."""
    parts = []
    with logger.open_bar(f"checking {name}") as watch:
        for number, (title, family) in enumerate(families.items(), start=1):
            parts.append((f"with {title}", _on_family(what, outcomes, family)))
            watch(number / len(families))
    own = _recorded(target, name) + _recipes_tried(brought, {})
    if all(found[0].check == "supports" for _, found in parts):
        own.insert(0, Outcome("supports", "FAILED", (f"the {what} supports none of these families",)))
    return _report([*parts, (name, own)])


def _on_family(what: str, outcomes: Callable[[Family], list[Outcome]], family: Family) -> list[Outcome]:
    """Return the outcomes of the checks on one family, or a single one that says that it is refused."""
    try:
        return outcomes(family)
    except ValueError as error:
        return [Outcome("supports", "skipped", (f"the {what} refuses: {' '.join(str(error).split())}",))]


def _brought_by(algorithm: Any, name: str) -> list[plugins.Recipe]:
    """Return the recipes for an algorithm that its own package brings."""
    package = type(algorithm).__module__.partition(".")[0]
    found = [recipe for recipe in plugins.recipes() if recipe.name.split("/")[0] == name]
    return [recipe for recipe in found if recipe.file.parents[1].name == package]


def _recorded(target: Any, name: str) -> list[Outcome]:
    def record(_: Any) -> Found:
        try:
            runs.describe(target, name)
        except ValueError as error:
            yield Fault(str(error), type(target))

    return run_checks([Check("record", "a run folder can record and rebuild it", record)], target)


def _report(parts: Sequence[tuple[str, list[Outcome]]]) -> int:
    """Print a line for each message of each check, then the counts. Return the exit code."""
    outcomes = [outcome for _, part in parts for outcome in part]
    width = max(len(outcome.check) for outcome in outcomes)
    for title, part in parts:
        if title:
            print(f"{title}:")
        for outcome in part:
            for message in outcome.messages:
                print(f"  {outcome.verdict:<7}  {outcome.check:<{width}}  {message}")
    counts = Counter({outcome.verdict: 0 for outcome in outcomes})
    for outcome in outcomes:
        counts[outcome.verdict] += len(outcome.messages)  # as many as lines above
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in get_args(Verdict) if counts[verdict]))
    return FAILED if counts["FAILED"] else DONE
