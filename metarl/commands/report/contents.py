"""What a report tells: what runs are and how far, their curves and scores, how they compare, and their pictures."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from metarl import plugins, runs
from metarl.commands import groups
from metarl.commands.compare import records
from metarl.commands.compare import table as comparisons
from metarl.commands.report import page
from metarl.commands.report.page import Markup
from metarl.commands.show import summary
from metarl.pictures import comparing, plotting

SHOWN = {"tasks.png": "tasks of the evaluation", "predictions.png": "predicted classes", "render.gif": "a film"}
"""Pictures that commands wrote into run folders, and what they show."""
LARGEST = 8 << 20
"""Bytes of a picture that is put into the page."""
Read = Mapping[str, groups.Scores]


def read(folders: Mapping[str, Path]) -> dict[str, groups.Scores]:
    """Read all runs and groups, by label. Raises RunError where one cannot be read."""
    return {label: groups.read_scores(folder) for label, folder in folders.items()}


def parts(folders: Mapping[str, Path], found: Read, title: str) -> Iterator[Markup]:
    """Yield the parts of the page."""
    yield page.heading(1, title)
    yield page.paragraph(f"metarl {metadata.version('metarl-toolkit')}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC", True)
    yield from _learning(found)
    yield from _adaptation(found)
    if len(folders) > 1:
        yield from _comparison(folders)
    for label, folder in folders.items():
        yield page.heading(2, label)
        yield page.table((), _told(folder))
        yield from _options(folder)
        yield from _pictures(folder)


def _drawn(draw: Callable[[Path], object], told: str) -> Markup:
    """Return a picture that a function writes to a path."""
    with tempfile.TemporaryDirectory(prefix="metarl-report-") as place:
        path = Path(place) / "picture.svg"
        draw(path)
        return page.picture(path.read_bytes(), "svg+xml", told)


def _learning(found: Read) -> Iterator[Markup]:
    yield page.heading(2, "Training")
    rows = {label: one.rows for label, one in found.items() if plotting.has_scores(one.rows)}
    if rows:
        yield _drawn(lambda path: plotting.learning_curve(rows, path), f"learning curves of {', '.join(rows)}")
    yield from _without("no score in training so far", found, rows)


def _adaptation(found: Read) -> Iterator[Markup]:
    yield page.heading(2, "Adaptation to held-out tasks")
    evaluated = {
        label: one.evaluation
        for label, one in found.items()
        if one.evaluation is not None and any(map(plotting.is_score, one.evaluation["metrics"]))
    }
    if evaluated:
        drawn = f"scores after each adaptation step of {', '.join(evaluated)}"
        yield _drawn(lambda path: plotting.adaptation_curve(evaluated, path), drawn)
        yield page.table(("run", "tasks", "score", "mean", "95 % interval"), _metrics(evaluated))
    yield from _without("not evaluated so far", found, evaluated)


def _metrics(evaluated: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[object, ...]]:
    for label, record in evaluated.items():
        tasks = f"{record['tasks']} {record['split']}"
        for name, values in {**record["metrics"], **record.get("references", {})}.items():
            yield label, tasks, name, f"{values['mean']:.4g}", f"{values['low']:.4g} to {values['high']:.4g}"
        for name, share in record.get("gap_closed", {}).items():
            interval = "-" if share["low"] is None else f"{share['low']:.1%} to {share['high']:.1%}"
            yield (
                label,
                tasks,
                f"gap closed, {name}",
                "none" if share["mean"] is None else f"{share['mean']:.1%}",
                interval,
            )


def _without(reason: str, found: Read, kept: Mapping[str, Any]) -> Iterator[Markup]:
    if missing := [label for label in found if label not in kept]:
        yield page.paragraph(f"{reason}: {', '.join(missing)}", note=True)


def _comparison(folders: Mapping[str, Path]) -> Iterator[Markup]:
    yield page.heading(2, "Comparison")
    try:
        compared = records.read(folders)
    except runs.RunError as error:
        yield page.paragraph(f"not compared: {error}", note=True)
        return
    rows = comparisons.rows(compared)
    scores = {label: one.scores for label, one in compared.items()}
    told = records.told(compared)
    estimates = comparisons.estimates(rows)
    yield _drawn(
        lambda path: comparing.comparison(scores, estimates, path, told), f"comparison of {', '.join(folders)}"
    )
    yield page.table(comparisons.HEADINGS, map(comparisons.cells, rows))
    yield page.paragraph(comparisons.NOTE, note=True)


def _told(folder: Path) -> list[summary.Line]:
    if groups.is_group(folder):
        return summary.of_group(groups.read_group(folder))
    return summary.of_run(plugins.run_folder(folder), str(folder))


def _one(folder: Path) -> Path:
    """Return the run folder, or that of a group's first run."""
    if groups.is_group(folder):
        return next(iter(groups.read_group(folder).runs.values()))
    return plugins.run_folder(folder)


def _options(folder: Path) -> Iterator[Markup]:
    config = runs.read_config(_one(folder))
    named = {part: config[part] for part in runs.GROUPS if config.get(part)}
    rows = [(part, record["reference"]) for part, record in named.items()]
    for part, record in named.items():
        rows += [(f"{part}.{name}", value) for name, value in summary.flat(record["options"]).items()]
    rows += [(f"settings.{name}", value) for name, value in summary.flat(config["settings"]).items()]
    rows += [(f"version of {name}", value) for name, value in config.get("versions", {}).items()]
    yield page.folded("all options, and the versions of packages", page.table((), rows))


def _pictures(folder: Path) -> Iterator[Markup]:
    place = _one(folder)
    for name, told in SHOWN.items():
        path = place / name
        if not path.is_file():
            continue
        if path.stat().st_size > LARGEST:
            yield page.paragraph(f"{path} is left out: it has more than {LARGEST >> 20} MiB", note=True)
            continue
        yield page.heading(3, f"{told} ({name})")
        yield page.picture(path.read_bytes(), path.suffix.removeprefix("."), f"{told} of {folder.name}")
