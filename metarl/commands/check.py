"""``metarl check PLUGIN``: run the contract on a plugin, and tell what fails and where."""

import dataclasses
import difflib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_args

from tyro.conf import OmitArgPrefixes, arg

from metarl import plugins, runs, testing, training
from metarl.cli import DONE, FAILED, Execute
from metarl.commands.parsing import parse
from metarl.speed import Device, resolve_device
from metarl.testing import Check, Fault, Found, Outcome, Verdict, raised_at, run_checks, small_family
from metarl.types import Family, Kind

KINDS: tuple[Kind, ...] = ("continuous", "discrete", "regression", "classification")

MEMBERS: dict[plugins.Group, str] = {"tasks": "sample", "algorithms": "build", "outers": "update"}
"""By what an object is known to be of a group."""
ON = arg(help="Families to learn from, by name (default: a small made-up one of each kind).")

CHECK_HELP = """Run the contract on a plugin: every check, with what was found, what was expected, and where.

Exit codes: 0 all hold, 1 one does not, 2 the request was wrong. Name the plugin, 'metarl check NAME --help', for its
own options too."""


@dataclasses.dataclass(frozen=True)
class CheckOptions:
    """Options of ``metarl check``."""

    device: Device = "auto"
    """Where data are drawn, and learnt from, besides the CPU; auto is cuda where there is one."""


def prepare(arguments: list[str]) -> Execute:
    """``[tasks|algorithms|outers] NAME [options]``: run the contract on a plugin."""
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
    checks = {"tasks": _families, "algorithms": _algorithms, "outers": _outers}
    return checks[group](name, target, options)


def _group(name: str) -> plugins.Group:
    """Return the group that a name is of. Raises ValueError where it is of none, or of several."""
    if ":" in name:
        target = plugins.import_attribute(name)
        groups = [group for group, member in MEMBERS.items() if hasattr(target, member)]
        told = (
            f"{name} has no 'sample', as task families do, and no 'build', as algorithms do, and no 'update', as outer "
            "updates do"
        )
    else:
        names = {group: [plugin.name for plugin in plugins.installed(group)] for group in plugins.GROUPS}
        groups = [group for group in plugins.GROUPS if name in names[group]]
        near = difflib.get_close_matches(name, [one for group in plugins.GROUPS for one in names[group]])
        asked = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        told = (
            f"no task family, no algorithm and no outer update is called {name!r}{asked}; 'metarl list' shows all names"
        )
    if len(groups) > 1:
        asked = " or ".join(f"'metarl check {group} {name}'" for group in groups)
        told = f"{name} is {'both' if len(groups) == 2 else 'all'}: ask for {asked}"
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
    options = _options(("algorithm", type(algorithm), algorithm), ("tasks", Annotated[tuple[str, ...], ON], ()))
    chosen = parse(options, arguments, f"check {name}", f"Check the algorithm {name}.")
    families = _chosen_families(chosen)

    def learning(family: Family) -> list[Outcome]:
        return testing.algorithm_outcomes(chosen.algorithm, family, device=chosen.request.device)

    return lambda: _on_families("algorithm", name, chosen.algorithm, families, learning)


def _outers(name: str, outer: Any, arguments: list[str]) -> Execute:
    """Check an outer update, built with the options that are given, on some families."""
    by = arg(name="algorithm", help="Algorithm whose learners are moved, by name (default: a small MAML).")
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
    """Return the families to learn from, by what they are called. Raises ValueError for a device that is not there."""
    resolve_device(chosen.request.device)
    made: dict[str, Family] = {f"made-up {kind}": small_family(kind) for kind in KINDS}
    return {name: training.source("tasks", name).target for name in chosen.tasks} or made


def _on_families(
    what: str, name: str, target: Any, families: dict[str, Family], outcomes: Callable[[Family], list[Outcome]]
) -> int:
    """Report what came of the checks on each family, of which one at least must be served."""
    parts = [(f"with {told}", _served(what, outcomes, family)) for told, family in families.items()]
    own = _recorded(target, name)
    if all(found[0].check == "serves" for _, found in parts):
        own.insert(0, Outcome("serves", "FAILED", (f"the {what} serves none of these families",)))
    return _report([*parts, (name, own)])


def _served(what: str, outcomes: Callable[[Family], list[Outcome]], family: Family) -> list[Outcome]:
    """Return what came of the checks on one family, or that it is refused."""
    try:
        return outcomes(family)
    except ValueError as error:
        return [Outcome("serves", "skipped", (f"the {what} refuses: {' '.join(str(error).split())}",))]


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
