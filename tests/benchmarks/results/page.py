"""docs/results.md and docs/study.md, written from the rows and the store: no number on them is typed by hand."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pictures
from rows import HERE, Job, Row, position, rows, study_base
from store import KEPT, read

from metarl.evaluation import comparison, over_seeds
from metarl.evaluation.reliable import Estimate, paired_difference
from metarl.files import write_bytes

DOCS = HERE.parents[2] / "docs"
RESULTS, STUDY = "results.md", "study.md"
ABSENT = "not trained yet"
HEAD = """# Results

This page is written by `python tests/benchmarks/results page` from the small run folders in
`tests/benchmarks/results/kept`. Each line has its command, its seeds, and the number to compare it with. `make results`
trains what is missing, most telling first; it can be stopped at any time, and goes on where it was.

- Scores are means over held-out tasks. Brackets hold 95 % intervals: over the tasks, for one seed; over seeds and tasks
  (a nested bootstrap), for several. The column *interval* says which. Intervals of two or three seeds are rough.
- All trainings use one thread (`OMP_NUM_THREADS=1`), because rounding depends on the number of threads.
- *Gap closed* is the share of the way from the pre-trained network to the oracle, on the same tasks.
- Environment steps are those of training, all tasks together.
- [Earlier results](earlier_results.md) were measured before run folders were kept. [The study](study.md) compares
  settings.
"""
STUDY_HEAD = """# Which settings matter

This page is written by `python tests/benchmarks/results page`, as [the results](results.md) are. Every point is a short
training of MAML on a half-cheetah, at equal numbers of environment steps. It changes one setting of the base. Scores
are returns of episodes of 100 steps on 40 held-out tasks, with 95 % intervals over seeds and tasks (over tasks only,
for one seed). *Beside the base* is the difference after one step, on the same tasks; of so many points, one would
stand apart by chance. Short trainings tell which settings learn fast, not which end highest.

The base: `{base}`.
"""


class Line(NamedTuple):
    """What the store has of a row."""

    row: Row
    found: dict[int, dict[str, Any]]
    """By seed: what ``store.read`` returns."""
    scores: Mapping[str, Mapping[str, Any]]
    """Joined over seeds."""


def lines(known: Sequence[Row], home: Path = KEPT) -> list[Line]:
    """Read the store. Raises RunError for a damaged folder, and ValueError for seeds that cannot be joined."""
    return [_line(row, home) for row in known]


def _line(row: Row, home: Path) -> Line:
    read_all = {seed: read(Job(row, seed), home) for seed in row.seeds}
    found = {seed: one for seed, one in read_all.items() if one is not None}
    evaluations = [one["evaluation"] for one in found.values()]
    if not evaluations:
        return Line(row, {}, {})
    return Line(row, found, over_seeds([one["metrics"] for one in evaluations], evaluations[0].get("strata")))


def pages(home: Path = KEPT) -> dict[str, str]:
    """Return the text of the generated pages by name."""
    all_lines = lines(rows(), home)
    study = [line for line in all_lines if line.row.choice]
    return {RESULTS: _results([line for line in all_lines if not line.row.choice]), STUDY: _study(study)}


def write(docs: Path = DOCS, home: Path = KEPT) -> list[Path]:
    """Write the pages and their pictures; return the paths."""
    written = []
    for name, text in pages(home).items():
        write_bytes(docs / name, text.encode())
        written.append(docs / name)
    for name, drawing in drawings(home).items():
        path = docs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        written.append(pictures.draw(drawing, path))
    return written


def drawings(home: Path = KEPT) -> dict[str, pictures.Drawing]:
    """Return what the pages' pictures show, by path within the documentation."""
    found = {}
    all_lines = lines(rows(), home)
    for part, group in _parts(line for line in all_lines if not line.row.choice).items():
        for kind, drawing in pictures.of_part(part, group).items():
            found[f"pictures/results/{slug(part)}-{kind}.png"] = drawing
    study = pictures.of_study([line for line in all_lines if line.row.choice])
    return found | ({} if study is None else {"pictures/results/study.png": study})


def slug(text: str) -> str:
    """Return a text as part of a file's name."""
    return re.sub(r"\W+", "-", text.lower()).strip("-")


def _parts(found: Iterator[Line] | Sequence[Line]) -> dict[str, list[Line]]:
    parts: dict[str, list[Line]] = {}
    for line in found:
        parts.setdefault(line.row.part, []).append(line)
    return parts


def _results(found: list[Line]) -> str:
    by_name = {line.row.name: line for line in found}
    sections = [_section(part, group, by_name) for part, group in _parts(found).items()]
    return "\n".join([HEAD, *sections]).rstrip() + "\n"


def _section(part: str, group: list[Line], by_name: Mapping[str, Line]) -> str:
    columns = _columns(group)
    head = ["run", "seeds", "trained", *map(_column, columns), "interval", "bar"]
    body = [cells for line in group for cells in _rows_of(line, columns)] + list(_references(group, columns))
    text = [f"## {part}\n", table(head, body)]
    if gaps := [cells for line in group for cells in _gaps(line, by_name)]:
        text += ["", table(["run", "score", "gap closed", "95 % interval", "bar"], gaps)]
    if equal := list(_at_equal_data(group)):
        head = ["run", "adaptation steps", "environment steps that they learn from", "return", "interval"]
        text += [
            "",
            "A step of adaptation takes more data for some learners than for others. With as much as the most:",
        ]
        text += ["", table(head, equal)]
    text += _notes(group)
    for kind in pictures.of_part(part, group):
        text.append(f"\n![{part}: {kind}](pictures/results/{slug(part)}-{kind}.png)")
    text += ["\n<!-- not run: most of these take minutes to hours -->", "```sh", *_commands(group), "```\n"]
    return "\n".join(text)


def _columns(group: Sequence[Line]) -> list[str]:
    """Return the scores that a section's table shows."""
    bars = [name for line in group for name in (*line.row.bar, *(n for o in line.row.others for n in o["scores"]))]
    if any("/instance_" in name for name in bars):
        return sorted(set(bars), key=position)
    score = next((name.partition("/")[0] for name in bars), None)
    score = score or next((name.partition("/")[0] for line in group for name in line.scores), "return")
    steps = {0, 1, 5, 10} if score == "loss" else {0, 1, 2, 3}
    steps |= {position(name) for name in bars}
    return [f"{score}/step_{step}" for step in sorted(steps)]


def _column(name: str) -> str:
    score, _, what = name.partition("/")
    if what.startswith("instance"):
        return f"{score}, drawing {position(name)}"
    return f"{score} before" if what == "step_0" else f"after {position(name)} step{'s' * (position(name) > 1)}"


def _rows_of(line: Line, columns: Sequence[str]) -> Iterator[list[str]]:
    row, bar = line.row, "; ".join(_bars(line))
    if line.found:
        scores = [_interval(name, line.scores.get(name)) for name in columns]
        yield [row.title, ", ".join(map(str, line.found)), _trained(line), *scores, _over(line), bar]
        if len(line.found) > 1:
            for seed, one in line.found.items():
                own = [_interval(name, one["evaluation"]["metrics"].get(name)) for name in columns]
                yield [f"— seed {seed}", str(seed), _length(one), *own, "tasks", ""]
    else:
        yield [row.title, ", ".join(map(str, row.seeds)), ABSENT, *[""] * len(columns), "", bar]
    for other in row.others:
        place = " (another simulator)" if other.get("elsewhere") else ""
        yield [
            f"*{other['title']}{place}*",
            "",
            "",
            *[_score(name, other["scores"].get(name)) for name in columns],
            "",
            "",
        ]


def _over(line: Line) -> str:
    """Return what the intervals of a row are over."""
    return "tasks" if len(line.found) == 1 else f"{len(line.found)} seeds, tasks"


def _at_equal_data(group: Sequence[Line]) -> Iterator[list[str]]:
    """Yield returns with equal numbers of environment steps, where some learners' first steps take twice as many."""
    records = [(line, next(iter(line.found.values()))["evaluation"]) for line in group if line.found]
    counted = [(line, record) for line, record in records if len(record.get("environment_steps") or []) > 1]
    first = {record["environment_steps"][1] for _, record in counted if record["environment_steps"][1]}
    for line, record in counted if first and max(first) > 2 * min(first) else ():
        step, used, _ = comparison.at_environment_steps(record, "return", max(first))
        name = f"return/step_{step}"
        yield [line.row.title, str(step), f"{used:,.0f}", _interval(name, line.scores[name]), _over(line)]


def _references(group: Sequence[Line], columns: Sequence[str]) -> Iterator[list[str]]:
    """Yield what zero actions and random actions earn on the same tasks; none of them adapts."""
    evaluations = (one["evaluation"] for line in group for one in line.found.values())
    found: Mapping[str, Any] = next((one["references"] for one in evaluations if one.get("references")), {})
    for name, values in found.items():
        told = name.partition("/")[2].replace("_", " ")
        yield [told, "", "", _interval(name, values), *[""] * (len(columns) - 1), "tasks", ""]


def _trained(line: Line) -> str:
    lengths = list(dict.fromkeys(map(_length, line.found.values())))
    missing = [str(seed) for seed in line.row.seeds if seed not in line.found]
    return "; ".join(lengths) + (f"; seed {', '.join(missing)}: {ABSENT}" if missing else "")


def _length(one: Mapping[str, Any]) -> str:
    told = one["collected"]
    steps = f", {told['environment_steps'] / 1e6:.3g} M steps" if told["environment_steps"] else ""
    of = "" if one["finished"] else f" of {told['iterations']:,}, stopped"
    return f"{told['iteration']:,} iterations{of}{steps}"


def _bars(line: Line) -> Iterator[str]:
    for name, bar in line.row.bar.items():
        lower = name.startswith("loss")
        told = f"{_place(name)} {'at most' if lower else 'at least'} {_score(name, bar)}"
        if name in line.scores:
            mean = line.scores[name]["mean"]
            told += ": reached" if (mean <= bar if lower else mean >= bar) else ": **missed**"
        yield told


def _place(name: str) -> str:
    what = name.partition("/")[2]
    return f"drawing {position(name)}" if what.startswith("instance") else f"step {position(name)}"


def _interval(name: str, values: Mapping[str, Any] | None) -> str:
    if values is None:
        return ""
    mean, low, high = (_score(name, values[key]) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _score(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name.startswith(("accuracy", "success")):
        return f"{value:.1%}".replace("%", " %")
    return f"{value:.1f}" if abs(value) >= 20 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def _gaps(line: Line, by_name: Mapping[str, Line]) -> Iterator[list[str]]:
    """Yield the gap that a row closes."""
    if line.row.oracle is None or line.row.pretrained is None or not line.found:
        return
    oracle, pretrained = by_name[line.row.oracle], by_name[line.row.pretrained]
    if not (oracle.found and pretrained.found):
        return
    own, knowing, given = (
        comparison.of_seeds([one["evaluation"]["metrics"] for one in each.found.values()])
        for each in (line, oracle, pretrained)
    )
    shared = {name: own[name] for name in own if name in given}
    among = next(iter(line.found.values()))["evaluation"].get("strata")
    for name, share in comparison.gap_closed(shared, knowing, given, among).items():
        if name not in (line.row.gap or _columns([line])):
            continue
        bar = ""
        if name in line.row.gap:
            bar = f"at least {line.row.gap[name]:.0%}".replace("%", " %") + f" ({line.row.source})"
        if share["mean"] is None:
            yield [line.row.title, _place(name), "the oracle is not better than the pre-trained run", "", bar]
            continue
        if bar:
            bar += ": reached" if share["mean"] >= line.row.gap[name] else ": **missed**"
        ends = [share[key] for key in ("low", "high")]
        between = "none" if None in ends else f"[{ends[0]:.1%}, {ends[1]:.1%}], over {_over(line)}"
        yield [line.row.title, _place(name), f"{share['mean']:.1%}", between, bar]


def _notes(group: Sequence[Line]) -> list[str]:
    notes = [f"- {line.row.title}: {line.row.note}" for line in group if line.row.note]
    for line in group:
        for seed, one in line.found.items():
            told = one["collected"]
            if told["differences"]:
                notes.append(f"- {line.row.title}, seed {seed}, was trained with: {'; '.join(told['differences'])}.")
    machines = sorted(
        {(one["collected"]["date"], one["collected"]["processor"]) for line in group for one in line.found.values()}
    )
    if machines:
        notes.append(f"- Collected: {'; '.join(f'{date} on {processor}, no GPU' for date, processor in machines)}.")
    return ["", *notes] if notes else []


def _commands(group: Sequence[Line]) -> Iterator[str]:
    for row in (line.row for line in group if line.row.of is None):
        folder = f"runs/{row.name}"
        several = len(row.seeds) > 1
        seed, indent = ("$seed", "  ") if several else (str(row.seeds[0]), "")
        if several:
            yield f"for seed in {' '.join(map(str, row.seeds))}; do"
        yield f"{indent}metarl train {row.train} --seed {seed} --out {folder}-{seed}"
        yield f"{indent}metarl evaluate {folder}-{seed} {row.evaluate}".rstrip()
        for again in row.also:
            yield f"{indent}metarl evaluate {folder}-{seed} {again.evaluate} --out {again.name}-{seed}.json"
        if several:
            yield "done"


def _study(found: list[Line]) -> str:
    text = [STUDY_HEAD.format(base=study_base())]
    for part, group in _parts(found).items():
        head = ["setting", "value", "seeds", "trained", "before", "after 1 step", "after 3 steps", "beside the base"]
        body, beside = [], {line.row.name: _beside_base(line, group[0]) for line in group[1:]}
        for line in group:
            names = [f"return/step_{step}" for step in (0, 1, 3)]
            seeds = ", ".join(map(str, line.found or line.row.seeds))
            scores = [_interval(name, line.scores.get(name)) for name in names]
            told = _trained(line) if line.found else ABSENT
            body.append([line.row.choice, line.row.value, seeds, told, *scores, _signed(beside.get(line.row.name))])
        text += [f"## {part.removeprefix('Study: ')}\n", *_told_apart(group, beside), table(head, body), ""]
    if pictures.of_study(found) is not None:
        text += ["![every point, after one step](pictures/results/study.png)\n"]
    text += [
        "## Commands\n",
        "<!-- not run: each takes a minute or more, all together hours -->",
        "```sh",
        *_commands(found),
        "```",
    ]
    return "\n".join(text).rstrip() + "\n"


def _beside_base(line: Line, base: Line) -> Estimate | None:
    """Return by how much the return after one step is above the base's, on the same tasks."""
    if not (line.found and base.found):
        return None
    one, other = (
        np.array([found["evaluation"]["metrics"]["return/step_1"]["per_task"] for found in each.found.values()])
        for each in (base, line)
    )
    return paired_difference(one, other, next(iter(base.found.values()))["evaluation"].get("strata"))


def _told_apart(group: Sequence[Line], beside: Mapping[str, Estimate | None]) -> Iterator[str]:
    """Yield which points are better than the base, worse, or neither: a difference counts if its interval has no 0."""
    known = [(line.row, found) for line in group if (found := beside.get(line.row.name)) is not None]
    known.sort(key=lambda pair: -pair[1].value)
    kinds = {
        "Better than the base after one step": [pair for pair in known if (pair[1].low or 0) > 0],
        "Worse": [pair for pair in reversed(known) if (pair[1].high or 0) < 0],
    }
    told = {row.name for pairs in kinds.values() for row, _ in pairs}
    others = [f"{row.choice} {row.value}" for row, _ in known if row.name not in told]
    for kind, pairs in kinds.items():
        named = [f"{row.choice} {row.value} ({found.value:+.0f})" for row, found in pairs]
        yield f"- {kind}: {', '.join(named) or 'none'}."
    yield f"- Not told apart: {', '.join(others) or 'none'}.\n"


def _signed(found: Estimate | None) -> str:
    if found is None:
        return ""
    ends = "" if found.low is None or found.high is None else f" [{found.low:+.1f}, {found.high:+.1f}]"
    return f"{found.value:+.1f}{ends}"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    told = [list(head), ["---"] * len(head), *map(list, body)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in told)
