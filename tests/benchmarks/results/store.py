"""The store of small run folders: what it keeps of a training, and how a training comes into it."""

import csv
import json
import platform
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rows import HERE, Job, position

from metarl import plugins, runs
from metarl.cli import main
from metarl.commands import train
from metarl.files import write_bytes, write_json
from metarl.runs import logger

KEPT = HERE / "kept"
COLLECTED = "collected.json"
"""What the store knows of a run besides its own files."""
LARGEST = 300_000
"""Bytes that a folder may have."""
SHOWN = 300
"""Rows of progress.csv that are kept."""
STEPS = (0, 1, 2, 3, 5, 10, 20, 50)
"""Numbers of adaptation steps after which scores are kept, besides the last one and those of the row's bars."""
SECTIONS = ("algorithm", "tasks", "outer", "settings")
SCHEDULE = ("algorithm", "options", "schedule")
CIRCUMSTANCES = ("device", "checkpoint_every", "log_every", "wandb", "compile")
"""Settings that change no result."""


class StoreError(ValueError):
    """A run that cannot be collected; says why."""


def collect(source: Path, job: Job, home: Path = KEPT, differing: bool = False) -> Path:
    """Copy what is small of a run into the store, score it on the row's held-out tasks, and return its folder.

    The rows that score this training again get folders of their own. The source is read only. It may have stopped
    before its end. ``differing`` allows options that the row's command would not give; the store then records them.

    Raises:
        StoreError: the run is another one than the row's, or has no checkpoint.
        RunError: the folder is damaged.
    """
    config = runs.read_config(source)
    differences = differing_options(config, job)
    if differences and not differing:
        raise StoreError(
            f"{source} was trained with other options than {job.name}: {'; '.join(differences)}; collect it with "
            "--differing, which records them, or change the row or its recipe"
        )
    for again in job.also:
        _collect(source, again, home, config, differences)
    return _collect(source, job, home, config, differences)


def _collect(source: Path, job: Job, home: Path, config: Mapping[str, Any], differences: list[str]) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=".") as folder:
        copy = Path(folder) / job.name
        copy.mkdir()
        shutil.copy(source / runs.CONFIG, copy)
        _keep_parameters(source, copy)
        _keep_progress(source, copy)
        arguments = ["evaluate", str(copy), *job.row.evaluate.split()]
        if (code := main(arguments)) != 0:
            raise StoreError(f"scoring failed with exit code {code}: metarl {' '.join(arguments)}")
        _shorten_evaluation(copy, job)
        _tidy(copy, job)
        write_json(copy / COLLECTED, _record(job, config, copy, source, differences))
        if not job.row.parameters:
            for path in copy.glob("*.pt"):
                path.unlink()
        kept = home / job.name
        if kept.exists():
            kept.rename(Path(folder) / "replaced")
        copy.rename(kept)
    return kept


def differing_options(config: Mapping[str, Any], job: Job) -> list[str]:
    """Return the options of a run that the row's command does not give, as sentences. Raises StoreError."""
    asked = command_config(job)
    for part in ("algorithm", "tasks"):
        if config[part]["reference"] != asked[part]["reference"]:
            found = f"{config['algorithm']['reference']} on {config['tasks']['reference']}"
            raise StoreError(f"this run trains {found}, and {job.name} is `metarl train {job.row.train}`")
    ours, theirs = ({part: one[part] for part in SECTIONS} for one in (config, asked))
    found = [(name, _at(ours, name), _at(theirs, name)) for name in _names(ours) if _has(theirs, name)]
    one_step = ours["algorithm"]["options"].get("steps") == 1  # whose size no schedule changes in training
    return [
        f"{'.'.join(name)} is {one}, not {other}"
        for name, one, other in found
        if one != other and not (one_step and name == SCHEDULE)
    ]


def command_config(job: Job) -> dict[str, Any]:
    """Return the configuration that the row's command makes today. Nothing is trained."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        train.prepare([*job.row.words, "--seed", str(job.seed), "--out", str(out), "--quiet"])
        return json.loads(json.dumps(runs.read_config(out)))


def _names(tree: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterable[tuple[str, ...]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _names(value, (*prefix, name))
        elif not (prefix == ("settings",) and name in CIRCUMSTANCES):
            yield (*prefix, name)


def _has(tree: Any, name: tuple[str, ...]) -> bool:
    for part in name:
        if not isinstance(tree, Mapping) or part not in tree:
            return False
        tree = tree[part]
    return True


def _at(tree: Any, name: tuple[str, ...]) -> Any:
    for part in name:
        tree = tree[part]
    return tree


def _keep_parameters(source: Path, copy: Path) -> None:
    """Keep the parameters of the last and of the best checkpoint, without the outer update's state."""
    if not (source / runs.CHECKPOINT).exists():
        raise StoreError(f"{source} has no checkpoint yet")
    for name in (runs.CHECKPOINT, runs.BEST):
        if (source / name).exists():
            saved = runs.load_progress(source / name)
            told = {key: saved[key] for key in ("iteration", "params", "buffers", "best", "refused")}
            runs.save_checkpoint(copy / name, {**told, "outer": {}})


def _keep_progress(source: Path, copy: Path) -> None:
    """Keep the scores of some iterations, with the environment steps until then."""
    last = runs.load_progress(source / runs.CHECKPOINT)["iteration"]
    rows = [row for row in logger.read_progress(source / runs.PROGRESS) if int(row["iteration"]) <= last]
    steps, kept = 0.0, []
    for number, row in enumerate(rows):
        rate, seconds = (
            float(row.get(f"time/{name}") or 0) for name in ("environment_steps_per_second", "iteration_seconds")
        )
        known = row.get("environment_steps")  # of a run that went on from what the store had
        steps = float(known) if known else steps + rate * seconds
        if number % -(-len(rows) // SHOWN) == 0 or number == len(rows) - 1:
            scores = {name: f"{float(cell):.5g}" for name, cell in row.items() if "/step_" in name and cell}
            kept.append({"iteration": row["iteration"], "environment_steps": str(round(steps)), **scores})
    columns = list(dict.fromkeys(name for row in kept for name in row))
    with (copy / runs.PROGRESS).open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)


def _shorten_evaluation(copy: Path, job: Job) -> None:
    """Keep the scores after some steps only, and five digits of each task's.

    Raises:
        StoreError: the row has a bar, an interval or a gap for a score that there is not.
    """
    record = runs.read_evaluation(copy)
    asked = {*job.row.bar, *job.row.expected, *job.row.gap}
    if missing := sorted(asked - set(record["metrics"])):
        told = f"metarl evaluate {' '.join(job.row.evaluate.split())}"
        raise StoreError(f"{job.name} has bars for {', '.join(missing)}, which `{told}` does not score")
    steps = {*STEPS, record["steps"], *map(position, asked)}
    metrics = {
        name: {**values, "per_task": [float(f"{value:.5g}") for value in values["per_task"]]}
        for name, values in record["metrics"].items()
        if "/step_" not in name or position(name) in steps
    }
    runs.write_record(copy / runs.EVALUATION, {**record, "metrics": metrics})


def _tidy(copy: Path, job: Job) -> None:
    """Remove pictures, events and locks; of the parameters, those that are not scored if the folder is too large."""
    keep = {runs.CONFIG, runs.PROGRESS, runs.EVALUATION, runs.CHECKPOINT, runs.BEST}
    for path in list(copy.iterdir()):
        if path.name not in keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    scored = runs.checkpoint(copy, job.row.checkpoint)
    for name in (runs.BEST, runs.CHECKPOINT):
        if size(copy) > LARGEST and (copy / name) != scored:
            (copy / name).unlink(missing_ok=True)
    if size(copy) > LARGEST:
        scored.unlink()  # the scores stay
    if (left := size(copy)) > LARGEST:
        raise StoreError(
            f"{job.name} takes {left} bytes without its parameters, {LARGEST} at most: evaluate fewer --tasks"
        )


def size(folder: Path) -> int:
    """Return the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def _record(job: Job, config: Mapping[str, Any], copy: Path, source: Path, differences: list[str]) -> dict[str, Any]:
    rows, last = logger.read_progress(copy / runs.PROGRESS), runs.load_progress(source / runs.CHECKPOINT)
    resumable = not last["outer"] and job.row.parameters and (copy / runs.CHECKPOINT).exists()
    return {
        "row": job.row.name,
        "seed": job.seed,
        "iteration": last["iteration"],
        "iterations": config["settings"]["iterations"],
        "environment_steps": int(rows[-1]["environment_steps"]) if rows else 0,
        "differences": differences,
        "resumable": resumable,
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def read(job: Job, home: Path = KEPT) -> dict[str, Any] | None:
    """Return what the store has of a training: ``collected``, ``evaluation``, ``progress``; None if it has nothing.

    Raises RunError for a damaged folder.
    """
    folder = home / job.name
    if not folder.exists():
        return None
    runs.read_config(folder)
    try:
        collected = json.loads((folder / COLLECTED).read_text(encoding="utf-8"))
        finished = collected["iteration"] >= collected["iterations"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise runs.RunError(f"{folder / COLLECTED} is damaged: {type(error).__name__}: {error}") from error
    evaluation = runs.read_evaluation(folder)
    progress = logger.read_rows(folder / runs.PROGRESS, collected["iteration"])
    _check_progress(folder, progress, collected)
    for path in sorted(folder.glob("*.pt")):
        runs.load_progress(path)
    return {"collected": collected, "evaluation": evaluation, "progress": progress, "finished": finished}


def _check_progress(folder: Path, progress: list[dict[str, float]], collected: Mapping[str, Any]) -> None:
    """Raise RunError for rows that are not those which were collected."""
    numbers = [row.get("iteration", 0) for row in progress]
    last = progress[-1].get("environment_steps") if progress else None
    if numbers != sorted(set(numbers)) or last != collected["environment_steps"] or min(numbers) < 1:
        raise runs.RunError(
            f"{folder / runs.PROGRESS} is damaged: expected rows up to {collected['environment_steps']} environment "
            f"steps; collect the training again"
        )


def all_finished(jobs: Iterable[Job], home: Path = KEPT) -> bool:
    """Return whether the store has all of these, trained to their ends. Raises RunError for a damaged folder."""
    return all(found is not None and found["finished"] for found in (read(job, home) for job in jobs))


def put_back(job: Job, folder: Path, home: Path = KEPT) -> bool:
    """Begin a run folder with what the store has of an unfinished training; return whether that is possible.

    It is, if the outer update has no state of its own: that is not kept.
    """
    found = read(job, home)
    if found is None or found["finished"] or not found["collected"].get("resumable"):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    for name in (runs.BEST, runs.CHECKPOINT, runs.PROGRESS, runs.CONFIG):  # the last makes it a run folder
        if (home / job.name / name).exists():
            shutil.copy(home / job.name / name, folder)
    return True


def find_job(source: Path, known: list[Job]) -> Job:
    """Return the training of a row that a run folder is, by its options. Raises StoreError if it is none."""
    config = runs.read_config(source)
    nearest: tuple[int, Job | None] = (10**6, None)
    for job in known:
        words = job.row.words
        if words[:2] != [config["algorithm"]["reference"], config["tasks"]["reference"]]:
            continue
        if job.seed != config["settings"]["seed"]:
            continue
        distance = len(differing_options(config, job))
        if distance < nearest[0]:
            nearest = distance, job
    if nearest[1] is None:
        raise StoreError(f"{source} is a training of no row: expected an algorithm, tasks and a seed of rows.toml")
    return nearest[1]


def ship(job: Job, home: Path = KEPT) -> Path | None:
    """Copy the scored parameters of a finished training to where its package ships them.

    Of several seeds, the one with the best score in the row's last bar, or after the first step, is shipped. Return
    the folder, or None if another seed is shipped or there are no parameters.
    """
    name, candidates = job.row.ships, []
    if name is None:
        return None
    for seed in job.row.seeds:
        found = read(Job(job.row, seed), home)
        parameters = home / f"{job.row.name}-{seed}" / runs.checkpoint(Path(), job.row.checkpoint).name
        if found is not None and parameters.exists():
            metrics = found["evaluation"]["metrics"]
            score = next(reversed(job.row.bar), None) or next(name for name in metrics if name.endswith("/step_1"))
            value = metrics[score]["mean"]
            candidates.append((-value if score.startswith("loss") else value, seed, parameters))
    if not candidates:
        return None
    _, seed, parameters = max(candidates)
    if seed != job.seed:
        return None
    family = plugins.load("tasks", job.row.words[1])
    package = __import__(family.__module__.partition(".")[0])
    folder = Path(package.__path__[0]) / "pretrained" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in (runs.CONFIG, runs.EVALUATION):
        write_bytes(folder / file, (parameters.parent / file).read_bytes())
    write_bytes(folder / runs.CHECKPOINT, parameters.read_bytes())
    return folder
