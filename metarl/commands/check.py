"""``metarl check TASKS|ALGORITHM``: run the contract on a plugin, and tell what fails and where."""

import dataclasses
import difflib
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, get_args

from tyro.conf import OmitArgPrefixes, arg

from metarl import plugins, runs, testing, training
from metarl.cli import DONE, FAILED, Execute
from metarl.commands.parsing import parse
from metarl.speed import Device, resolve_device
from metarl.testing import Check, Fault, Found, Outcome, Verdict, raised_at, run_checks, small_family
from metarl.types import Family, Kind

KINDS: tuple[Kind, ...] = ("continuous", "discrete", "regression", "classification")

CHECK_HELP = """Run the contract on a plugin: every check, with what was found, what was expected, and where.

Exit codes: 0 all hold, 1 one does not, 2 the request was wrong. Name the plugin, 'metarl check NAME --help', for its
own options too."""


@dataclasses.dataclass(frozen=True)
class CheckOptions:
    """Options of ``metarl check``."""

    device: Device = "auto"
    """Where data are drawn, and learnt from, besides the CPU; auto is cuda where there is one."""


def prepare(arguments: list[str]) -> Execute:
    """``[tasks|algorithms] NAME [options]``: run the contract on a plugin."""
    if arguments in (["-h"], ["--help"]):
        parse(CheckOptions, ["--help"], "check NAME", CHECK_HELP)
    named: list[plugins.Group] = [group for group in plugins.GROUPS if arguments[:1] == [group]]
    name, *options = arguments[len(named) :] or [""]
    if not name or name.startswith("-"):
        raise ValueError("check needs a name, e.g. 'metarl check point-navigation'; 'metarl list' shows all")
    group = named[0] if named else _group(name)
    try:
        target = training.source(group, name).target
    except Exception as error:  # a plugin's code may raise anything when it is imported, and when it is made
        if _asked_wrongly(error, name):
            raise
        outcome = Outcome("import", "FAILED", (f"{_message(error)}{raised_at(error)}",), error)
        return lambda: _report([("", [outcome])])
    return _families(name, target, options) if group == "tasks" else _algorithms(name, target, options)


def _group(name: str) -> plugins.Group:
    """Return whether a name is a family's or an algorithm's. Raises ValueError where it is neither's or both's."""
    if ":" in name:
        members: dict[plugins.Group, str] = {"tasks": "sample", "algorithms": "build"}
        target = plugins.import_attribute(name)
        groups = [group for group, member in members.items() if hasattr(target, member)]
        told = f"{name} has no 'sample', as task families do, and no 'build', as algorithms do"
    else:
        names = {group: [plugin.name for plugin in plugins.available(group)] for group in plugins.GROUPS}
        groups = [group for group in plugins.GROUPS if name in names[group]]
        near = difflib.get_close_matches(name, [*names["tasks"], *names["algorithms"]])
        asked = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        told = f"no task family and no algorithm is called {name!r}{asked}; 'metarl list' shows all names"
    if len(groups) > 1:
        told = f"{name} is both: ask for 'metarl check tasks {name}' or 'metarl check algorithms {name}'"
    if len(groups) != 1:
        raise ValueError(told)
    return groups[0]


def _asked_wrongly(error: Exception, name: str) -> bool:
    """Return whether nothing is there to be checked; else what is there is broken."""
    if not isinstance(error, plugins.PluginError):
        return False
    return error.__cause__ is None or (":" in name and isinstance(error.__cause__, ModuleNotFoundError))


def _message(error: Exception) -> str:
    told = " ".join(str(error).split())
    return told if isinstance(error, plugins.PluginError) else f"{type(error).__name__}: {told}"


def _families(name: str, family: Any, arguments: list[str]) -> Execute:
    """Check a family, built with the options that are given."""
    options = _options(("tasks", type(family), family))
    chosen = parse(options, arguments, f"check {name}", f"Check the task family {name}.")
    resolve_device(chosen.request.device)

    def execute() -> int:
        outcomes = testing.family_outcomes(chosen.tasks, device=chosen.request.device)
        return _report([("", outcomes + _recorded(chosen.tasks, name))])

    return execute


def _algorithms(name: str, algorithm: Any, arguments: list[str]) -> Execute:
    """Check an algorithm, built with the options that are given, on some families."""
    on = arg(help="Families to learn from, by name (default: a small made-up one of each kind).")
    options = _options(("algorithm", type(algorithm), algorithm), ("tasks", Annotated[tuple[str, ...], on], ()))
    chosen = parse(options, arguments, f"check {name}", f"Check the algorithm {name}.")
    resolve_device(chosen.request.device)
    made: dict[str, Family] = {f"made-up {kind}": small_family(kind) for kind in KINDS}
    families = {named: training.source("tasks", named).target for named in chosen.tasks} or made

    def execute() -> int:
        parts = [(f"with {told}", _learning(chosen, family)) for told, family in families.items()]
        outcomes = _recorded(chosen.algorithm, name)
        if all(found[0].check == "serves" for _, found in parts):
            outcomes.insert(0, Outcome("serves", "FAILED", ("the algorithm serves none of these families",)))
        return _report([*parts, (name, outcomes)])

    return execute


def _options(*parts: tuple[Any, ...]) -> type[Any]:
    return dataclasses.make_dataclass("Check", [("request", OmitArgPrefixes[CheckOptions], CheckOptions()), *parts])


def _learning(chosen: Any, family: Family) -> list[Outcome]:
    """Check an algorithm on one family, which it may refuse to serve."""
    try:
        chosen.algorithm.build(family.spec)
    except ValueError as error:
        return [Outcome("serves", "skipped", (f"the algorithm refuses: {' '.join(str(error).split())}",))]
    return testing.algorithm_outcomes(chosen.algorithm, family, device=chosen.request.device)


def _recorded(target: Any, name: str) -> list[Outcome]:
    def record(_: Any) -> Found:
        try:
            runs.describe(target, name)
        except ValueError as error:
            yield Fault(str(error), type(target))

    return run_checks([Check("record", "a run folder records it, and rebuilds it", record)], target)


def _report(parts: Sequence[tuple[str, list[Outcome]]]) -> int:
    """Print a line for each check, and how many came out how. Returns the exit code."""
    outcomes = [outcome for _, part in parts for outcome in part]
    width = max(len(outcome.check) for outcome in outcomes)
    for title, part in parts:
        if title:
            print(f"{title}:")
        for outcome in part:
            for told in outcome.told:
                print(f"  {outcome.verdict:<7}  {outcome.check:<{width}}  {told}")
    counts = Counter(outcome.verdict for outcome in outcomes)
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in get_args(Verdict) if counts[verdict]))
    return FAILED if counts["FAILED"] else DONE
