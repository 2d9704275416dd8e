"""Every learner of labelled examples on the same tasks, each for the same time of one core: docs/learners.md's tables.

    python tests/benchmarks/learners.py [--seconds 120] [--tasks sinusoid omniglot] [--only maml cavia]

Each learner trains by its recipe in a process of its own, until it has used so many seconds of the processor, and is
scored on the same held-out tasks. What is found goes into learners.json, beside this file; the page is written from it:
a learner that is there already, with as many seconds, is not trained again. ``--page`` only writes the page.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tables import number, table

FOUND = Path(__file__).with_name("learners.json")
PAGE = Path(__file__).parents[2] / "docs" / "learners.md"
ASKED = {
    "sinusoid": {"shots": 5},
    "omniglot": {"ways": 5, "shots": 1, "test_queries": 5},
}
"""The tasks on which all are scored."""
SCORE = {"sinusoid": "loss", "omniglot": "accuracy"}
STEPS = (0, 1, 5, 10)
HELD_OUT = {"sinusoid": 600, "omniglot": 300}
MIB = 1 << 20


def main() -> None:
    chosen = parse()
    if chosen.one:
        print(json.dumps(measured(chosen.only[0], chosen.tasks[0], chosen.seconds)))
        return
    for tasks in [] if chosen.page else chosen.tasks:
        for algorithm in chosen.only or served(tasks):
            measure(algorithm, tasks, chosen.seconds)
    write_page(PAGE, read())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="of the processor, for each training")
    parser.add_argument("--tasks", nargs="+", choices=list(ASKED), default=list(ASKED))
    parser.add_argument("--only", nargs="+", default=[], metavar="ALGORITHM")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def served(tasks: str) -> list[str]:
    """Return the algorithms that have a recipe for these tasks."""
    from metarl.plugins.recipes import recipes

    return [
        name
        for name, family, variant in (one.name.split("/") for one in recipes())
        if (family, variant) == (tasks, "default")
    ]


def measure(algorithm: str, tasks: str, seconds: float) -> None:
    """Train and score in a process of its own, unless that is known, and keep what is found."""
    known = read().get(tasks, {}).get(algorithm)
    if known is not None and known["seconds"] == seconds:
        return
    print(f"{tasks}: {algorithm}", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--one", "--only", algorithm, "--tasks", tasks, "--seconds", str(seconds)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = read()
    found.setdefault(tasks, {})[algorithm] = json.loads(ended.stdout)
    temporary = FOUND.with_suffix(".tmp")
    temporary.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(FOUND)


def read() -> dict[str, dict[str, Any]]:
    return json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.exists() else {}


def measured(algorithm: str, tasks: str, seconds: float) -> dict[str, Any]:
    """Train an algorithm by its recipe for some seconds of the processor, and score it."""
    import metarl
    from metarl.evaluation import evaluate
    from metarl.speed.allocator import keep_freed_memory
    from metarl.training import Iteration

    experiment = metarl.recipe(algorithm, tasks)
    family = experiment.tasks
    trained_on = {"train_shots": family.train_shots or family.shots} if family.shots > 1 else {}
    family = replace(family, **ASKED[tasks], **trained_on)
    keep_freed_memory()
    began = time.process_time()

    def stop(iteration: Iteration) -> bool:
        return time.process_time() - began < seconds

    settings = replace(experiment.settings, device="cpu", log_every=10**6)
    run = replace(experiment, tasks=family, settings=settings).train(callbacks=[stop])
    spent, peak = time.process_time() - began, peak_bytes()
    scoring = time.process_time()
    trained = run.learner.adaptations
    # A memory reads the items once; more often is another task than the one that it was trained for.
    steps = sorted({*(STEPS if run.learner.memory is None else STEPS[:2]), trained})
    found = evaluate(run.learner, run.params, family, HELD_OUT[tasks], steps[-1])
    scored = time.process_time() - scoring
    return {
        "seconds": seconds,
        "held_out": HELD_OUT[tasks],
        "spent": spent,
        "iterations": run.iteration,
        "tasks": run.iteration * settings.meta_batch_size,
        "steps": trained,
        "parameters": sum(value.numel() for value in run.params.values()),
        "peak_mib": peak / MIB,
        "scoring_seconds": scored,
        "scores": {step: found.metrics[f"{SCORE[tasks]}/step_{step}"] | {"per_task": None} for step in steps},
    }


def peak_bytes() -> int:
    """Return the most memory that this process has held."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def write_page(page: Path, found: dict[str, dict[str, Any]]) -> None:
    """Set the tables between their marks on the page."""
    text = page.read_text(encoding="utf-8")
    for tasks, rows in found.items():
        inside = re.compile(rf"(<!-- learners: {tasks} -->\n).*?(<!-- end -->)", re.DOTALL)
        shown = f"\n{markdown(tasks, rows)}\n\n"
        text = inside.sub(lambda marks, shown=shown: marks[1] + shown + marks[2], text)
    page.write_text(text, encoding="utf-8")


def markdown(tasks: str, rows: dict[str, Any]) -> str:
    """Return the table of the learners on some tasks, the best after its best number of steps first."""
    better = -1 if SCORE[tasks] == "accuracy" else 1
    best = {name: min(better * one["mean"] for one in row["scores"].values()) for name, row in rows.items()}
    head = ["", *(f"{step} step{'' if step == 1 else 's'}" for step in STEPS)]
    head += ["as trained", "tasks seen", "ms a task", "parameters", "memory, MiB"]
    first = next(iter(rows.values()))
    told = f"{first['seconds']:.0f} seconds of one core for each learner, {first['held_out']} held-out tasks."
    shown = table(head, ([f"`{name}`", *cells(tasks, rows[name])] for name in sorted(rows, key=best.__getitem__)))
    return f"{told}\n\n{shown}"


def cells(tasks: str, row: dict[str, Any]) -> list[str]:
    scale, unit = (100, " %") if SCORE[tasks] == "accuracy" else (1, "")
    scores = [row["scores"].get(str(step)) for step in (*STEPS, row["steps"])]
    told = ["" if score is None else f"{number(scale * score['mean'])}{unit}" for score in scores]
    told[-1] += f" ({row['steps']})"
    each = number(1000 * row["spent"] / row["tasks"])
    return [*told, f"{row['tasks']:,}", each, f"{row['parameters']:,}", f"{row['peak_mib']:.0f}"]


if __name__ == "__main__":
    main()
