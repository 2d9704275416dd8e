"""Running named checks on a plugin: what was found, and where in its source."""

import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

Verdict = Literal["ok", "FAILED", "note", "skipped"]
TOOLKIT = ("metarl", "torch", "gymnasium", "numpy")
"""Packages whose functions a plugin calls: what they raise was most often brought about by their caller."""


class Fault(NamedTuple):
    """A promise that is not kept."""

    told: str
    """What was found, and what was expected."""
    blamed: Any = None
    """The function or class that does not keep it."""


class Note(NamedTuple):
    """What is no fault, and yet worth knowing."""

    told: str


Found = Iterator[Fault | Note]


class NotChecked(Exception):
    """Why a check cannot be run here; whatever it found before stands."""


class Check(NamedTuple):
    """One promise of a plugin."""

    name: str
    promise: str
    """What holds where nothing was found."""
    run: Callable[[Any], Found]
    needs: tuple[str, ...] = ()
    """Checks without which this one says nothing new, or cannot be run."""


class Outcome(NamedTuple):
    """What came of one check."""

    check: str
    verdict: Verdict
    told: tuple[str, ...]
    """Each fault with its place, each note; or the promise that is kept, or why it was not looked at."""
    error: Exception | None = None
    """What the plugin raised, if it did."""

    def __str__(self) -> str:
        """Return one line for each thing told."""
        return "\n".join(f"{self.check}: {told}" for told in self.told)


def run_checks(checks: Sequence[Check], subject: Any, earlier: Sequence[Outcome] = ()) -> list[Outcome]:
    """Run every check that does not need one that failed, now or earlier, and return what came of each, in order."""
    outcomes: list[Outcome] = []
    unmet = {found.check for found in earlier if found.verdict == "FAILED"}
    for check in checks:
        missing = [name for name in check.needs if name in unmet]
        if missing:
            unmet.add(check.name)
            outcomes.append(Outcome(check.name, "skipped", (f"needs {missing[0]}, which does not hold",)))
            continue
        outcomes.append(_outcome(check, subject))
        if outcomes[-1].verdict == "FAILED":
            unmet.add(check.name)
    return outcomes


def _outcome(check: Check, subject: Any) -> Outcome:
    faults, notes, reason, error = list[str](), list[str](), None, None
    try:
        for found in check.run(subject):
            told = found.told if isinstance(found, Note) else f"{found.told}{placed(found.blamed)}"
            (notes if isinstance(found, Note) else faults).append(told)
    except NotChecked as skipped:
        reason = str(skipped)
    except Exception as raised:  # a plugin's code may raise anything; the outcome keeps it
        error = raised
        faults.append(f"{type(raised).__name__}: {' '.join(str(raised).split())}{raised_at(raised)}")
    if faults:
        return Outcome(check.name, "FAILED", tuple(dict.fromkeys(faults)), error)
    if notes:
        return Outcome(check.name, "note", tuple(dict.fromkeys(notes)))
    return Outcome(check.name, "skipped" if reason else "ok", (reason or check.promise,))


def placed(blamed: Any) -> str:
    """Return where a function or a class stands, as the end of a sentence; nothing for None."""
    if blamed is None:
        return ""
    target = inspect.unwrap(getattr(blamed, "func", blamed))
    name = getattr(target, "__qualname__", type(target).__qualname__).replace(".<locals>", "")
    try:
        defined = target if hasattr(target, "__qualname__") else type(target)
        return f" ({_file(inspect.getsourcefile(defined) or '?')}:{inspect.getsourcelines(defined)[1]}, {name})"
    except (TypeError, OSError):  # there is no source: a builtin, or something typed at a prompt
        return f" ({name})"


def raised_at(error: BaseException) -> str:
    """Return where in the plugin an exception, or its first cause, came from, as the end of a sentence."""
    if hasattr(error, "blamed"):
        return ""  # the message names the place
    while error.__cause__ is not None:
        error = error.__cause__
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [found for found in frames if _owner(found[0].f_globals.get("__name__", "")) not in TOOLKIT]
    own = [found for found in own if _owner(found[0].f_globals.get("__name__", "")) not in sys.stdlib_module_names]
    if not frames:
        return ""
    frame, line = (own or frames)[-1]
    return f" ({_file(frame.f_code.co_filename)}:{line}, {frame.f_code.co_qualname.replace('.<locals>', '')})"


def _owner(module: str) -> str:
    return module.partition(".")[0]


def _file(name: str) -> str:
    path = Path(name)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else name
