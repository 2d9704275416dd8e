"""What ``metarl show`` says of a run. Nothing that a run names is imported."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from metarl import runs
from metarl.commands.groups import Group, go_on, standing
from metarl.files import typed
from metarl.pictures import plotting
from metarl.runs.logger import read_progress
from metarl.training import training_score

Line = tuple[str, str]
"""What is told, and what is said of it."""
MOST_OPTIONS = 8
"""How many options are shown of each part."""
Rows = Sequence[Mapping[str, str]]


class State(NamedTuple):
    """How far a run is."""

    reached: int
    """Iterations in its checkpoint."""
    last: int
    """Iterations that it is to have."""
    holder: str | None
    """Who trains it now."""

    def __str__(self) -> str:
        """Return it in words."""
        share = f"iteration {self.reached} of {self.last} ({self.reached / self.last:.0%})"
        if self.reached >= self.last:
            return f"done, {share}"
        if self.holder is not None:
            return f"training now, {share}; {self.holder}"
        return f"stopped, {share}" if self.reached else f"no checkpoint yet, {share}"


def of_run(folder: Path, name: str) -> list[Line]:
    """Describe a run. Raises RunError for a folder without one, or a damaged one."""
    config = runs.read_config(folder)
    rows = read_progress(folder / runs.PROGRESS)
    lines = [_line("run", name), *_parts(config), _line("settings", _settings(config["settings"]))]
    if "baseline" in config:
        lines += [_line("baseline", f"{config['baseline']} of Stable-Baselines3, which does not adapt")]
    else:
        state = _state(folder, config)
        lines += [_line("state", str(state)), *_scores(rows), *_validation(folder)]
    lines += [*_evaluation(folder), _line("made", _made(folder, config))]
    return [*lines, *_next(folder, name, config)]


def of_group(group: Group) -> list[Line]:
    """Describe a group: what its runs share, and a line for each."""
    configs = {seed: runs.read_config(folder) for seed, folder in group.runs.items()}
    config = next(iter(configs.values()))
    lines = [_line("group", f"{group.folder}: seeds {', '.join(map(str, group.runs))}"), *_parts(config)]
    lines.append(_line("settings", _settings(config["settings"])))
    unfinished = False
    for seed, folder in group.runs.items():
        state = _state(folder, configs[seed])
        unfinished |= state.reached < state.last
        told = _best_and_last(read_progress(folder / runs.PROGRESS))
        lines.append(_line(f"seed {seed}", "; ".join([str(state), *told])))
    lines += _evaluation(group.folder)
    return [*lines, _line("next", go_on(group.folder) if unfinished else f"metarl evaluate {typed(group.folder)}")]


def _line(name: str, text: str) -> Line:
    return name, text


def _parts(config: Mapping[str, Any]) -> list[Line]:
    lines = [_line("recipe", config["recipe"])] if config.get("recipe") else []
    for part in runs.GROUPS:
        if record := config.get(part):
            shown = [f"{name}={_short(value)}" for name, value in flat(record["options"]).items()]
            more = f", and {len(shown) - MOST_OPTIONS} more" if len(shown) > MOST_OPTIONS else ""
            lines.append(_line(part, f"{record['reference']}: {', '.join(shown[:MOST_OPTIONS])}{more}".rstrip(": ")))
    return lines


def flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options by dotted names, without those that are off, empty or None."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return {name: value for name, value in found.items() if value not in (None, False, [], "")}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:21]}..."


def _settings(settings: Mapping[str, Any]) -> str:
    names = ("iterations", "meta_batch_size", "seed", "device", "compile", "timesteps")
    told = [f"{name}={settings[name]}" for name in names if settings.get(name) not in (None, False)]
    return ", ".join(told)


def _state(folder: Path, config: Mapping[str, Any]) -> State:
    return State(standing(folder), int(config["settings"]["iterations"]), runs.holder(folder))


def _scores(rows: Rows) -> list[Line]:
    lines = [_line("scores", text) for text in _best_and_last(rows)]
    return lines or [_line("scores", "none yet")]


def _best_and_last(rows: Rows) -> list[str]:
    """Return the best and the last row's scores in training, before and after adaptation."""
    scored = [row for row in rows if any(value and plotting.is_score(name) for name, value in row.items())]
    numbers = [{name: float(cell) for name, cell in row.items() if cell} for row in scored]
    rated = [(score, row) for row in numbers if not math.isnan(score := training_score(row))]
    if not rated:
        return []
    best = max(rated, key=lambda pair: pair[0])[1]
    return [f"best {_row(best)}", f"last {_row(rated[-1][1])}"]


def _row(row: Mapping[str, float]) -> str:
    names = [name for name in plotting.LABELS if any(key.startswith(f"{name}/step_") for key in row)]
    told = []
    for name in names:
        steps = plotting.steps_of(name, row)
        values = " -> ".join(f"{row[f'{name}/step_{step}']:.4g}" for step in steps)
        told.append(f"{name} {values}")
    return f"at iteration {int(row['iteration'])}: {', '.join(told)}"


def _validation(folder: Path) -> list[Line]:
    curve = runs.read_curve(folder)
    rated = [point for point in curve if not math.isnan(point["score"])]
    if not rated:
        return []
    best = max(rated, key=lambda point: point["score"])
    return [
        _line(
            "validation",
            f"best {best['score']:.4g} at iteration {best['iteration']}, last {rated[-1]['score']:.4g} at iteration "
            f"{rated[-1]['iteration']}",
        )
    ]


def _evaluation(folder: Path) -> list[Line]:
    if not (folder / runs.EVALUATION).exists():
        return [_line("evaluation", "none yet")]
    record = runs.read_evaluation(folder)
    iteration = f", parameters of iteration {record['iteration']}" if "iteration" in record else ""
    lines = [_line("evaluation", f"on {record['tasks']} {record['split']} tasks{iteration}")]
    for name in plotting.LABELS:
        steps = plotting.steps_of(name, record["metrics"])
        values = [record["metrics"][f"{name}/step_{step}"] for step in steps]
        told = " -> ".join(f"{one['mean']:.4g} [{one['low']:.4g}, {one['high']:.4g}]" for one in values)
        lines += [_line("", f"{name} {told}")] if told else []
    return lines


def _made(folder: Path, config: Mapping[str, Any]) -> str:
    paths = [path for name in (runs.CHECKPOINT, runs.PROGRESS, runs.CONFIG) if (path := folder / name).exists()]
    changed = datetime.fromtimestamp(max(path.stat().st_mtime for path in paths), UTC)
    versions = config.get("versions", {})
    packages = ", ".join(f"{name} {versions[name]}" for name in ("metarl", "torch") if name in versions)
    return f"last written {changed:%Y-%m-%d %H:%M} UTC{f'; with {packages}' if packages else ''}"


def _next(folder: Path, name: str, config: Mapping[str, Any]) -> list[Line]:
    if "baseline" in config or name != str(folder):
        return []
    state = _state(folder, config)
    if state.reached < state.last:
        return [] if state.holder is not None else [_line("next", f"metarl resume {typed(folder)}")]
    if not (folder / runs.EVALUATION).exists():
        return [_line("next", f"metarl evaluate {typed(folder)}")]
    return [_line("next", f"metarl plot {typed(folder)}")]
