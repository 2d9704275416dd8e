"""The results pages are those of the store; trainings come into it unharmed; the queue can be stopped and goes on."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from metarl import runs
from metarl.cli import main

ROOT = Path(__file__).parents[1]
HERE = ROOT / "tests" / "benchmarks" / "results"
NAMES = ("page", "pictures", "rows", "store", "working")


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import the programs of the results, which are modules of a folder."""
    monkeypatch.syspath_prepend(HERE)
    yield type("Modules", (), {name: __import__(name) for name in NAMES})
    for name in NAMES:
        sys.modules.pop(name)


TRAIN = "maml bandit --recipe none --checkpoint-every 1 --iterations 2 --meta-batch-size 2 --algorithm.hidden 4"


def tiny(modules: Any, **options: Any) -> Any:
    settings = {"name": "tiny", "part": "Bandits", "title": "MAML", "train": TRAIN, "seeds": (0,)}
    row = modules.rows.Row(**{**settings, "evaluate": "--tasks 3 --steps 1", **options})
    return modules.rows.Job(row, 0)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    assert main(["train", *TRAIN.split(), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    return tmp_path / "run"


def test_the_pages_are_those_of_the_store(modules: Any) -> None:
    for name, text in modules.page.pages().items():
        told = f"run `python tests/benchmarks/results page`: docs/{name} is not what the store gives"
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text, told


def test_the_pictures_are_those_of_the_store(modules: Any) -> None:
    drawings = modules.page.drawings()
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs/pictures/results").glob("*.png")}
    assert there == set(drawings)
    for name, drawing in drawings.items():
        with Image.open(ROOT / "docs" / name) as image:
            assert image.info["Description"] == modules.pictures.digest(drawing), f"{name} is stale"


def test_the_store_holds_small_folders_of_rows(modules: Any) -> None:
    known = {
        job.name: job for row in modules.rows.rows() for job in (modules.rows.Job(row, seed) for seed in row.seeds)
    }
    for folder in modules.store.KEPT.iterdir():
        assert modules.store.size(folder) <= modules.store.LARGEST
        found = modules.store.read(known[folder.name])
        assert (found["collected"]["row"], found["collected"]["seed"]) == (
            known[folder.name].row.name,
            known[folder.name].seed,
        )
        assert "/work" not in (folder / "config.json").read_text(encoding="utf-8")


def test_stored_trainings_have_the_options_of_their_rows_today(modules: Any) -> None:
    """A row or a recipe that was changed does not tell the numbers of what it was before."""
    for job in modules.rows.jobs(modules.rows.rows()):
        if not (modules.store.KEPT / job.name).exists():
            continue
        config = json.loads((modules.store.KEPT / job.name / "config.json").read_text(encoding="utf-8"))
        if config["tasks"]["reference"] == "omniglot" and "METARL_DATA" not in os.environ:
            continue
        told = modules.store.read(job)["collected"]["differences"]
        assert modules.store.differing_options(config, job) == told, f"{job.name}: train it again, or collect it again"


def test_finished_rows_are_in_their_expected_intervals(modules: Any) -> None:
    for line in modules.page.lines([row for row in modules.rows.rows() if row.expected]):
        for seed, one in line.found.items():
            for score, (low, high) in line.row.expected.items() if one["finished"] else ():
                mean = one["evaluation"]["metrics"][score]["mean"]
                assert low <= mean <= high, f"{line.row.name}, seed {seed}: {score} is {mean}"


CELLS = ("5-1", "5-5", "20-1", "20-5")
"""Numbers of ways and shots, in the order of the README's table."""
README = {
    "2-D navigation": (("point-navigation",), "return/step_", (0, 1, 2, 3), 1),
    "half-cheetah direction": (("half-cheetah-direction",), "return/step_", (0, 1), 0),
    "half-cheetah velocity": (("half-cheetah-velocity",), "return/step_", (0, 1, 2, 3), 0),
    "ant direction": (("ant-direction",), "return/step_", (0, 1, 3), 0),
    "ant velocity": (("ant-velocity",), "return/step_", (0, 1, 3), 0),
    "ant goal": (("ant-goal",), "return/step_", (0, 1, 3), 0),
    "sinusoid, MAML": (("sinusoid",), "loss/step_", (1, 5, 10), 2),
    "Omniglot 5-way, MAML (Meta-SGD)": (("omniglot-maml-5-1", "omniglot-maml-5-5"), "accuracy/step_", (3,), 1),
    "Omniglot, prototypical": (tuple(f"omniglot-protonet-{cell}" for cell in CELLS), "accuracy/step_", (1,), 1),
    "Omniglot, SNAIL": (tuple(f"omniglot-snail-{cell}" for cell in CELLS), "accuracy/step_", (1,), 1),
    "Omniglot 5-way, matching": (("omniglot-matching-5-1", "omniglot-matching-5-5"), "accuracy/step_", (1,), 1),
    "Omniglot 5-way, MANN": (("omniglot-mann",), "accuracy/instance_", (2, 5, 10), 1),
}
"""Lines of the README's table: rows, scores, steps, and digits."""


@pytest.mark.parametrize("begins", README)
def test_the_readme_tells_the_means_over_seeds_of_the_store(begins: str, modules: Any) -> None:
    names, score, steps, digits = README[begins]
    (line,) = [one for one in (ROOT / "README.md").read_text().splitlines() if one.startswith(f"| {begins}")]
    told = [float(word) for word in re.findall(r"-?[0-9.]+", line.split("|")[2])]
    means = []
    for name in names:
        found = [json.loads(path.read_text()) for path in modules.store.KEPT.glob(f"{name}-[0-9]/evaluation.json")]
        for step in steps:
            mean = sum(one["metrics"][f"{score}{step}"]["mean"] for one in found) / len(found)
            means.append(100 * mean if score.startswith("accuracy") else mean)
    assert told == pytest.approx(means, abs=0.5001 * 10**-digits)


def test_what_ships_is_what_was_scored(modules: Any) -> None:
    from metarl import plugins

    for run in plugins.pretrained():
        if not run.folder.is_relative_to(ROOT):
            continue  # of another package
        rows = [row for row in modules.rows.rows() if row.ships == run.name]
        kept = [modules.store.KEPT / f"{rows[0].name}-{seed}" for seed in rows[0].seeds]
        same = [(one / "config.json").read_bytes() for one in kept if one.exists()]
        place = same.index((run.folder / "config.json").read_bytes())
        source = [one for one in kept if one.exists()][place]
        scored = runs.checkpoint(source, rows[0].checkpoint)
        assert (run.folder / "checkpoint.pt").read_bytes() == scored.read_bytes()
        assert sum(path.stat().st_size for path in run.folder.iterdir()) < 250_000


def test_a_training_is_collected_whole_and_small(trained: Path, tmp_path: Path, modules: Any) -> None:
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    job = tiny(modules)
    kept = modules.store.collect(trained, job, tmp_path / "kept")
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before
    names = {"config.json", "progress.csv", "evaluation.json", "collected.json", "checkpoint.pt", "best.pt"}
    assert {path.name for path in kept.iterdir()} == names
    found = modules.store.read(job, tmp_path / "kept")
    assert found["finished"]
    # 2 iterations of 2 bandits with 20 + 20 episodes of one pull each
    steps = [row["environment_steps"] for row in found["progress"]]
    assert steps == [pytest.approx(steps[1] / 2), found["collected"]["environment_steps"]]
    opened, original = (runs.load_progress(folder / "checkpoint.pt")["params"] for folder in (kept, trained))
    assert all(torch.equal(opened[name], value) for name, value in original.items())
    assert main(["evaluate", str(trained), "--tasks", "3", "--steps", "1"]) == 0
    again = json.loads((trained / "evaluation.json").read_text())["metrics"]["return/step_1"]["mean"]
    assert found["evaluation"]["metrics"]["return/step_1"]["mean"] == again
    modules.store.collect(trained, job, tmp_path / "kept")  # once more, in place of the first
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["tiny-0"]


def test_the_scores_of_the_bars_are_kept_or_missed_aloud(trained: Path, tmp_path: Path, modules: Any) -> None:
    """Of many steps the store keeps a few: always the last, and those that the row has a bar for."""
    job = tiny(modules, evaluate="--tasks 3 --steps 8", bar={"return/step_6": 0.5})
    kept = modules.store.collect(trained, job, tmp_path / "kept")
    metrics = json.loads((kept / "evaluation.json").read_text())["metrics"]
    assert {name for name in metrics if "/step_" in name} >= {f"return/step_{step}" for step in (0, 1, 2, 3, 5, 6, 8)}
    assert not {"return/step_4", "return/step_7"} & set(metrics)
    job = tiny(modules, evaluate="--tasks 3 --steps 1", bar={"return/step_6": 0.5})
    with pytest.raises(modules.store.StoreError, match="return/step_6, which `metarl evaluate --tasks 3 --st"):
        modules.store.collect(trained, job, tmp_path / "kept")


def test_too_many_scores_are_refused_before_they_are_kept(
    trained: Path, tmp_path: Path, modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules.store, "LARGEST", 1_000)
    with pytest.raises(modules.store.StoreError, match="evaluate fewer --tasks"):
        modules.store.collect(trained, tiny(modules), tmp_path / "kept")
    assert not list((tmp_path / "kept").glob("tiny*"))


def test_a_row_that_ships_nothing_need_not_adapt(trained: Path, tmp_path: Path, modules: Any) -> None:
    """An oracle is scored before adaptation only: there is no score to choose the best seed by."""
    job = tiny(modules, evaluate="--tasks 3 --steps 0")
    modules.store.collect(trained, job, tmp_path / "kept")
    assert modules.store.ship(job, tmp_path / "kept") is None


def test_another_run_is_refused(trained: Path, tmp_path: Path, modules: Any) -> None:
    other = tiny(modules, train=TRAIN.replace("--meta-batch-size 2", "--meta-batch-size 3"))
    with pytest.raises(
        modules.store.StoreError, match=r"settings\.meta_batch_size is 2, not 3; collect it with --diff"
    ):
        modules.store.collect(trained, other, tmp_path / "kept")
    kept = modules.store.collect(trained, other, tmp_path / "kept", differing=True)
    assert json.loads((kept / "collected.json").read_text())["differences"] == ["settings.meta_batch_size is 2, not 3"]
    with pytest.raises(
        modules.store.StoreError, match="this run trains maml on bandit, and tiny-0 is `metarl train rl2"
    ):
        modules.store.collect(trained, tiny(modules, train="rl2 bandit"), tmp_path / "kept")
    with pytest.raises(modules.store.StoreError, match="is a training of no row"):
        modules.store.find_job(trained, [tiny(modules, train="rl2 bandit")])
    assert modules.store.find_job(trained, [other, tiny(modules)]) == tiny(modules)
    (trained / "checkpoint.pt").unlink()
    with pytest.raises(modules.store.StoreError, match="has no checkpoint yet"):
        modules.store.collect(trained, tiny(modules), tmp_path / "kept")


def test_a_page_tells_what_has_run_and_what_has_not(trained: Path, tmp_path: Path, modules: Any) -> None:
    bar = {"return/step_1": 2.0}
    job = tiny(modules, bar=bar, seeds=(0, 1), note="A note.")
    missing = dataclasses.replace(job.row, name="other", title="another", train="rl2 bandit")
    modules.store.collect(trained, job, tmp_path / "kept")
    lines = modules.page.lines([job.row, missing], tmp_path / "kept")
    text = modules.page._results(lines)
    mean = f"{lines[0].scores['return/step_1']['mean']:.3f} ["
    assert "| MAML | 0 | 2 iterations" in text and "seed 1: not trained yet" in text and mean in text
    assert "step 1 at least 2.00: **missed**" in text
    random = lines[0].found[0]["evaluation"]["references"]["return/random_actions"]["mean"]
    assert f"| random actions |  |  | {random:.3f} [" in text
    assert "| another | 0, 1 | not trained yet |" in text
    assert "  metarl train rl2 bandit --seed $seed --out runs/other-$seed" in text
    assert "- MAML: A note." in text


TWICE = """
[[row]]
name = "one"
part = "Bandits"
title = "MAML"
train = "{train}"
seeds = [0]
evaluate = "--tasks 3 --steps 1"

[[row]]
name = "two"
of = "one"
part = "Bandits"
title = "MAML, two steps"
evaluate = "--tasks 3 --steps 2"
"""


def test_one_training_fills_several_rows(
    trained: Path, tmp_path: Path, modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules.working.os, "nice", lambda step: 0)
    (tmp_path / "rows.toml").write_text(TWICE.format(train=TRAIN))
    one, two = modules.rows._read_rows(tmp_path / "rows.toml")
    assert (two.train, two.seeds, one.also) == (one.train, (0,), (two,))
    (job,) = modules.rows.jobs([one, two])
    work, kept = tmp_path / "work", tmp_path / "kept"
    work.mkdir()
    trained.rename(work / "one-0")
    assert modules.working.run(job, work, kept) == 0
    lines = modules.page.lines([one, two], kept)
    steps = [{name for name in line.scores if "/step_" in name} for line in lines]
    assert "return/step_2" not in steps[0] and "return/step_2" in steps[1]
    assert not list((kept / "two-0").glob("*.pt"))
    assert modules.working.state(job, work, kept) == (True, "done")
    commands = list(modules.page._commands(lines))
    assert [line.split()[1] for line in commands] == ["train", "evaluate", "evaluate"]
    assert commands[2] == "metarl evaluate runs/one-0 --tasks 3 --steps 2 --out two-0.json"
    shutil.rmtree(kept / "two-0")
    shutil.rmtree(work)
    assert modules.working.state(job, work, kept) == (False, "scored, but not as other rows: to be trained anew")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (('of = "one"', 'of = "three"'), "row 2 is of 'three', which is no row with a training"),
        (('of = "one"', 'of = "two"'), "row 2 is of 'two', which is no row with a training"),
        (('of = "one"', 'of = "one"\nseeds = [1]'), "row 2 has seeds, which a row of another one takes from there"),
    ],
)
def test_a_row_of_another_one_must_be_of_a_training(
    change: tuple[str, str], told: str, tmp_path: Path, modules: Any
) -> None:
    (tmp_path / "rows.toml").write_text(TWICE.format(train=TRAIN).replace(*change))
    with pytest.raises(ValueError, match=told):
        list(modules.rows._read_rows(tmp_path / "rows.toml"))


def test_columns_reach_to_the_steps_of_the_bars(modules: Any) -> None:
    line = drawn(modules, {"accuracy/step_0": 0.2}, bar={"accuracy/step_50": 0.9})
    assert modules.page._columns([line]) == [f"accuracy/step_{step}" for step in (0, 1, 2, 3, 50)]


def test_learners_are_compared_after_equal_numbers_of_environment_steps(modules: Any) -> None:
    """MAML learns from 40 steps at a time, RL^2 from 10: RL^2's score after three steps is the last within 40."""
    ours = {"return/step_0": 0.0, "return/step_1": 5.0}
    theirs = {"return/step_0": 0.0, "return/step_1": 1.0, "return/step_3": 3.0, "return/step_5": 9.0}
    lines = [drawn(modules, ours, title="MAML"), drawn(modules, theirs, title="RL^2")]
    for line, each in zip(lines, (40, 10), strict=True):
        counts = [each * step for step in range(6)]
        line.found[0]["evaluation"] = {"environment_steps": counts, "metrics": line.scores}
    assert list(modules.page._at_equal_data(lines)) == [
        ["MAML", "1", "40", "5.00 [4.90, 5.10]", "tasks"],
        ["RL^2", "3", "30", "3.00 [2.90, 3.10]", "tasks"],
    ]
    assert not list(modules.page._at_equal_data(lines[:1]))


def test_points_of_the_study_are_told_apart_from_the_base_on_the_same_tasks(modules: Any) -> None:
    """Tasks differ by 100, points by 2: only the differences on each task tell."""
    tasks, lines = [100.0 * task for task in range(10)], []
    for number, more in enumerate((0.0, 2.0, -2.0, [3.0, -3.0] * 5, None)):
        shifts = more if isinstance(more, list) else [more or 0.0] * 10
        line = drawn(modules, {}, more is not None, name=f"study-{number}", choice="size", value=str(number))
        for seed in (0, 1) if more is not None else ():
            per_task = [task + shift for task, shift in zip(tasks, shifts, strict=True)]
            line.found[seed] = {"evaluation": {"metrics": {"return/step_1": {"per_task": per_task}}}}
        lines.append(line)
    beside = {line.row.name: modules.page._beside_base(line, lines[0]) for line in lines[1:]}
    assert beside["study-1"] == (2.0, 2.0, 2.0)
    assert beside["study-4"] is None
    assert list(modules.page._told_apart(lines, beside)) == [
        "- Better than the base after one step: size 1 (+2).",
        "- Worse: size 2 (-2).",
        "- Not told apart: size 3.\n",
    ]


def drawn(modules: Any, scores: dict[str, float], trained: bool = True, **options: Any) -> Any:
    row = modules.rows.Row(**{"name": "a", "part": "P", "title": "ours", "train": "maml x", "seeds": (0,), **options})
    values = {name: {"mean": value, "low": value - 0.1, "high": value + 0.1} for name, value in scores.items()}
    return modules.page.Line(row, {0: {"progress": []}} if trained else {}, values if trained else {})


def test_classifiers_are_drawn_beside_their_papers_at_the_bars_step(modules: Any) -> None:
    scores = {"accuracy/step_0": 0.2, "accuracy/step_1": 0.8, "accuracy/step_3": 0.9}
    others = ({"title": "a paper", "scores": {"accuracy/step_3": 0.95}},)
    ours = drawn(modules, scores, bar={"accuracy/step_3": 0.95}, others=others)
    missing = drawn(modules, scores, trained=False, title="not trained yet", others=others)
    unmeasured = drawn(modules, scores | {"accuracy/step_10": 0.7}, title="without a bar")
    (drawing,) = modules.pictures.of_part("P", [ours, missing, unmeasured]).values()
    assert drawing["kind"] == "levels"
    assert drawing["ours"] == [
        {"label": "ours", "score": [0.9, 0.8, 1.0], "others": [0.95]},
        {"label": "without a bar", "score": [0.7, 0.6, 0.8], "others": []},
    ]


def test_a_memory_is_drawn_by_drawings_and_policies_by_steps(modules: Any) -> None:
    scores = {"accuracy/step_0": 0.2, "accuracy/step_1": 0.8, "accuracy/instance_1": 0.3, "accuracy/instance_2": 0.7}
    others = ({"title": "a paper", "scores": {"accuracy/instance_2": 0.75}},)
    (drawing,) = modules.pictures.of_part("P", [drawn(modules, scores, others=others)]).values()
    assert [[place, mean] for place, mean, _, _ in drawing["ours"][0]["points"]] == [[1, 0.3], [2, 0.7]]
    assert drawing["others"] == [{"label": "a paper", "points": [[2, 0.75]]}]
    policy = drawn(modules, {"return/step_0": -9.0, "return/step_1": 5.0})
    (drawing,) = modules.pictures.of_part("P", [policy]).values()
    assert [[place, mean] for place, mean, _, _ in drawing["ours"][0]["points"]] == [[0, -9.0], [1, 5.0]]


def test_a_damaged_store_is_one_clear_line(trained: Path, tmp_path: Path, modules: Any) -> None:
    job = tiny(modules)
    kept = modules.store.collect(trained, job, tmp_path / "kept")
    rows = (kept / "progress.csv").read_text()
    for name, texts in {
        "collected.json": ("{",),
        "evaluation.json": ("[]",),
        "config.json": ("{}",),
        "progress.csv": ("{", "x", "", rows[: rows.rindex("\n2,")], rows.replace("\n1,", "\n2,")),
        "checkpoint.pt": ("", "x"),
    }.items():
        for damage in texts:
            whole = (kept / name).read_bytes()
            (kept / name).write_text(damage)
            with pytest.raises(runs.RunError, match=name) as caught:
                modules.store.read(job, tmp_path / "kept")
            assert "\n" not in str(caught.value)
            (kept / name).write_bytes(whole)
    assert modules.store.read(job, tmp_path / "kept") is not None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[row]\n", "cannot be read"),
        ("[[row]]\nname = 'a'\nbars = 3\n", "row 1 has bars: expected some of bar"),
        ("[[row]]\nname = 'a'\n", "row 1: 'seeds'"),
        ("[[row]]\nname = 'a'\nseeds = [0]\n", "row 1: .*missing .*'part', 'title', and 'train'"),
        ("[[row]]\nname = 'a'\npart = 'p'\ntitle = 't'\ntrain = 'x y'\nseeds = []\n", "a has no seeds"),
    ],
)
def test_wrong_rows_are_named(text: str, told: str, tmp_path: Path, modules: Any) -> None:
    path = tmp_path / "rows.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=told):
        list(modules.rows._read_rows(path))


def job_of(modules: Any, name: str) -> Any:
    return tiny(modules, name=name)


def test_the_queue_works_two_at_a_time_in_order_and_skips_what_is_done(
    trained: Path, tmp_path: Path, modules: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(modules.working, "PAUSE", 0.01)
    modules.store.collect(trained, job_of(modules, "done"), tmp_path / "kept")
    begun, most = [], []

    def begin(job: Any, work: Path) -> Any:
        begun.append(job.row.name)
        code = 2 if job.row.name == "b" else 0
        process = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep(0.2); raise SystemExit({code})"])
        alive.append(process)
        most.append(sum(one.poll() is None for one in alive))
        return process

    alive: list[Any] = []
    queue = [job_of(modules, name) for name in ("a", "done", "b", "c", "d")]
    assert modules.working.work_through(queue, 2, tmp_path / "work", tmp_path / "kept", begin) == 1
    assert begun == ["a", "b", "c", "d"]
    assert max(most) == 2
    assert "b-0: failed with exit code 2; see" in capsys.readouterr().out


def test_a_signal_stops_the_workers_and_begins_nothing_new(
    tmp_path: Path, modules: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(modules.working, "PAUSE", 0.01)
    begun = []

    def begin(job: Any, work: Path) -> Any:
        begun.append(job.row.name)
        if len(begun) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    queue = [job_of(modules, name) for name in "abcd"]
    before = signal.getsignal(signal.SIGTERM)
    assert modules.working.work_through(queue, 2, tmp_path / "work", tmp_path / "kept", begin) == 0
    assert begun == ["a", "b"]
    assert capsys.readouterr().out.count("stopped; `make results` goes on with it") == 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_training_that_was_stopped_goes_on_and_is_collected(
    tmp_path: Path, modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules.working.os, "nice", lambda step: 0)
    work, kept, job = tmp_path / "work", tmp_path / "kept", tiny(modules)
    assert modules.working.state(job, work, kept) == (False, "not trained yet")
    shorter = TRAIN.replace("--iterations 2", "--iterations 1")
    assert main(["train", *shorter.split(), "--out", str(work / "tiny-0"), "--quiet"]) == 0
    config = runs.read_config(work / "tiny-0")  # as if it had been stopped after the first of two
    runs.write_record(work / "tiny-0" / "config.json", {**config, "settings": {**config["settings"], "iterations": 2}})
    assert modules.working.state(job, work, kept) == (False, "stands at iteration 1 of 2")
    assert modules.working.run(job, work, kept) == 0
    assert modules.working.state(job, work, kept) == (True, "done")
    shutil.rmtree(work)
    assert modules.working.state(job, work, kept) == (True, "done")


def test_a_training_goes_on_from_the_store(tmp_path: Path, modules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine has only the store. Without a state of the outer update, the result is the same."""
    monkeypatch.setattr(modules.working.os, "nice", lambda step: 0)
    work, kept, job = tmp_path / "work", tmp_path / "kept", tiny(modules)
    half, whole = tmp_path / "half", tmp_path / "whole"
    assert main(["train", *TRAIN.split(), "--out", str(whole), "--quiet"]) == 0
    shutil.copytree(whole, half)
    shutil.copy(half / "previous.pt", half / "checkpoint.pt")  # as it was after the first of two iterations
    modules.store.collect(half, job, kept)
    assert modules.working.state(job, work, kept) == (False, "stands at iteration 1 of 2")
    assert modules.working.run(job, work, kept) == 0
    found = modules.store.read(job, kept)
    assert found["finished"]
    assert [row["iteration"] for row in found["progress"]] == [1, 2]
    steps = [row["environment_steps"] for row in found["progress"]]
    assert steps[1] == pytest.approx(2 * steps[0], abs=1)
    ours, theirs = (runs.load_progress(path / "checkpoint.pt")["params"] for path in (kept / "tiny-0", whole))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_the_command_tells_of_an_unknown_row() -> None:
    command = [sys.executable, str(HERE), "work", "--row", "half-cheetah"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.strip() == (
        "results: no row is called 'half-cheetah'; did you mean 'half-cheetah-velocity' or 'half-cheetah-direction'? "
        "`python tests/benchmarks/results list` shows all"
    )


def test_a_list_whose_reader_has_exited_ends_without_a_traceback() -> None:
    command = f"'{sys.executable}' '{HERE}' list | head -n 1"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("half-cheetah-direction-0")
    assert ended.stderr == ""


@pytest.mark.slow
@pytest.mark.benchmark
@pytest.mark.parametrize("name", ["sinusoid", "point-navigation"])
def test_a_short_training_stays_in_its_interval(name: str, tmp_path: Path, modules: Any) -> None:
    """About five minutes in all."""
    fast = modules.rows.fast()[name]
    assert main(["train", *fast["train"].split(), "--seed", "0", "--out", str(tmp_path / "run"), "--quiet"]) == 0
    assert main(["evaluate", str(tmp_path / "run"), *fast["evaluate"].split()]) == 0
    metrics = runs.read_evaluation(tmp_path / "run")["metrics"]
    for score, (low, high) in fast["expected"].items():
        assert low <= metrics[score]["mean"] <= high, f"{score} of {name} left its interval"
