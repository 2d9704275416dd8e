"""Run named checks on a plugin and report what they found, and where in its source."""

import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

Verdict = Literal["ok", "FAILED", "note", "skipped"]
TOOLKIT = ("metarl", "torch", "gymnasium", "numpy")
"""Packages that plugins call. If one of them raises, the cause is most often in the plugin that called it."""


class Fault(NamedTuple):
    """A broken promise."""

    message: str
    """What was found, and what was expected."""
    blamed: Any = None
    """The function or class at fault."""


class Note(NamedTuple):
    """Not a fault, but worth knowing."""

    message: str


Found = Iterator[Fault | Note]


class NotChecked(Exception):
    """Raised by a check that cannot run here, with the reason. What it found before still counts."""


class Check(NamedTuple):
    """One promise of a plugin."""

    name: str
    promise: str
    """What holds if the check finds no fault."""
    run: Callable[[Any], Found]
    needs: tuple[str, ...] = ()
    """Checks that must pass first. Otherwise, this one would fail for the same reason, or could not run."""


class Outcome(NamedTuple):
    """The result of one check."""

    check: str
    verdict: Verdict
    messages: tuple[str, ...]
    """The faults with their places, or the notes; else the promise that holds, or the reason for skipping the check."""
    error: Exception | None = None
    """The exception that the plugin raised, if any."""

    def within(self, context: str) -> "Outcome":
        """Return the outcome with a context in front of each message."""
        return self._replace(messages=tuple(f"{context}{message}" for message in self.messages))

    def __str__(self) -> str:
        """Return one line for each message."""
        return "\n".join(f"{self.check}: {message}" for message in self.messages)


def run_checks(
    checks: Sequence[Check],
    subject: Any,
    earlier: Sequence[Outcome] = (),
    watch: Callable[[float], object] = lambda share: None,
) -> list[Outcome]:
    """Run checks and return their outcomes in order. Skip a check that needs one that failed, now or ``earlier``.

    ``watch`` is called with the share of the checks, earlier ones included, that are done.
    """
    outcomes: list[Outcome] = []
    unmet = {outcome.check for outcome in earlier if outcome.verdict == "FAILED"}
    for number, check in enumerate(checks):
        watch((len(earlier) + number) / (len(earlier) + len(checks)))
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
            if isinstance(found, Note):
                notes.append(found.message)
            else:
                faults.append(f"{found.message}{placed(found.blamed)}")
    except NotChecked as skipped:
        reason = str(skipped)
    except Exception as raised:  # a plugin may raise anything; the outcome records it
        error = raised
        faults.append(f"{type(raised).__name__}: {' '.join(str(raised).split())}{raised_at(raised)}")
    if faults:
        return Outcome(check.name, "FAILED", tuple(dict.fromkeys(faults)), error)
    if notes:
        return Outcome(check.name, "note", tuple(dict.fromkeys(notes)))
    return Outcome(check.name, "skipped" if reason else "ok", (reason or check.promise,))


def placed(blamed: Any) -> str:
    """Return the place of a function or class in its source, as the end of a sentence; empty for None."""
    if blamed is None:
        return ""
    target = inspect.unwrap(getattr(blamed, "func", blamed))
    name = getattr(target, "__qualname__", type(target).__qualname__).replace(".<locals>", "")
    try:
        defined = target if hasattr(target, "__qualname__") else type(target)
        return f" ({_file(inspect.getsourcefile(defined) or '?')}:{inspect.getsourcelines(defined)[1]}, {name})"
    except (TypeError, OSError):  # no source: a builtin, or code typed at a prompt
        return f" ({name})"


def raised_at(error: BaseException) -> str:
    """Return the place in the plugin that raised an exception, or its first cause, as the end of a sentence."""
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
