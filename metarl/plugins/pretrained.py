"""Runs that packages ship trained: ``pretrained:NAME`` in place of a run folder.

A package ships a run as the folder ``pretrained/NAME`` beside its modules, with ``config.json``, ``checkpoint.pt`` and
``evaluation.json`` of a run folder. They are listed without importing the package or torch.
"""

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from metarl.plugins.registry import PluginError, offering, shipped

PREFIX = "pretrained:"


class Pretrained(NamedTuple):
    """A run that an installed package ships."""

    name: str
    folder: Path
    package: str
    """The package's module."""
    trained: str
    """The recipe or the algorithm and tasks that it was trained with, and its seed."""
    reached: str
    """Its scores on held-out tasks."""


def pretrained() -> list[Pretrained]:
    """Return the runs that installed packages ship, sorted by name. Raises PluginError for a damaged folder."""
    return sorted(_described(*found) for found in _shipped())


def find_pretrained(name: str) -> Path:
    """Return the folder of a shipped run. Raises PluginError if there is none, or if several packages ship the name."""
    found = [(folder, package) for folder, package in _shipped() if folder.name == name]
    if len(found) > 1:
        raise PluginError(f"{PREFIX}{name} is shipped by {' and by '.join(package for _, package in found)}")
    if not found:
        near = difflib.get_close_matches(name, {folder.name for folder, _ in _shipped()}, cutoff=0.4)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise PluginError(f"no pretrained run is called {name!r}{hint}; `metarl list pretrained` shows all names")
    return found[0][0]


def is_pretrained(run: Path | str) -> bool:
    """Return whether a run is asked for as ``pretrained:NAME``."""
    return str(run).startswith(PREFIX)


def run_folder(run: Path | str) -> Path:
    """Return the folder of a run, which may be asked for as ``pretrained:NAME``. Raises PluginError."""
    return find_pretrained(str(run).removeprefix(PREFIX)) if is_pretrained(run) else Path(run)


def _shipped() -> Iterator[tuple[Path, str]]:
    for package in sorted(offering("tasks") | offering("algorithms")):
        for config in shipped(package, "pretrained/*/config.json"):
            yield config.parent, package


def _described(folder: Path, package: str) -> Pretrained:
    config, evaluation = (_read(folder / name) for name in ("config.json", "evaluation.json"))
    try:
        names = f"{config['algorithm']['reference']}/{config['tasks']['reference']}"
        trained = f"{config.get('recipe') or names}, seed {config['settings']['seed']}"
        reached = f"{_scores(evaluation['metrics'])} ({_circumstances(evaluation)})"
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise PluginError(f"the pretrained run in {folder} is damaged: {type(error).__name__}: {error}") from error
    return Pretrained(folder.name, folder, package, trained, reached)


def _scores(metrics: dict[str, Any]) -> str:
    """Return the first score after each of the first steps: ``return after 0 / 1 steps: -1.2 / 343``."""
    name = next(name for name in ("accuracy", "return", "loss") if f"{name}/step_0" in metrics)
    steps = sorted(int(key.partition("/step_")[2]) for key in metrics if key.startswith(f"{name}/step_"))[:4]
    numbers = " / ".join(f"{metrics[f'{name}/step_{step}']['mean']:.3g}" for step in steps)
    return f"{name} after {' / '.join(map(str, steps))} steps: {numbers}"


def _circumstances(evaluation: dict[str, Any]) -> str:
    told = [f"{evaluation['tasks']} held-out tasks"]
    if (schedule := evaluation.get("schedule")) is not None:
        told.append(f"--schedule {' '.join(f'{factor:g}' for factor in schedule)}")
    if (episodes := evaluation.get("episodes")) is not None:
        told.append(f"--episodes {episodes}")
    return ", ".join(told)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PluginError(f"the pretrained run in {path.parent} is damaged: {path.name}: {error}") from error
