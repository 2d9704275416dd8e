"""The experiments of docs/experiments run as they stand, at a size of seconds and on made-up drawings."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from metarl.algorithms.shared.mini_batches import positions
from metarl_plugins import omniglot

FOLDER = Path(__file__).parents[1] / "docs" / "experiments"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"experiments_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 24 made-up characters of 20 drawings each stand for Omniglot."""
    images = torch.randint(256, (24 * 20, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    names = tuple(f"Alphabet/character{number:02}" for number in range(24))
    made_up = omniglot.Drawings(images, torch.arange(24).repeat_interleave(20), names, (False,) * 24)
    monkeypatch.setattr(omniglot, "located", lambda root: Path())
    monkeypatch.setattr(omniglot, "load", lambda folder: made_up)
    monkeypatch.setattr(omniglot, "RANDOM_SIZES", (12, 6, 6))


@pytest.fixture
def five_alphabets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let five made-up alphabets of 20 characters stand for Omniglot: two for training, one for validation."""
    alphabets = ("Anglo", "Armenian", "Babel", "Cipher", "Delta")
    names = tuple(f"{alphabet}/character{number:02}" for alphabet in alphabets for number in range(1, 21))
    images = torch.randint(256, (100 * 20, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    evaluation = tuple(name[0] in "CD" for name in names)
    made_up = omniglot.Drawings(images, torch.arange(100).repeat_interleave(20), names, evaluation)
    monkeypatch.setattr(omniglot, "located", lambda root: Path())
    monkeypatch.setattr(omniglot, "load", lambda folder: made_up)


@pytest.fixture
def one_thread(two_threads: Any) -> Iterator[None]:
    """More would only wait for each other on networks of this size."""
    torch.set_num_threads(1)
    yield


@pytest.mark.usefixtures("drawings", "one_thread")
def test_reptile_goes_on_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reptile = loaded("reptile")
    options = reptile.Options(
        runs=tmp_path / "runs",
        out=tmp_path / "out",
        seeds=(1,),
        iterations=4,
        lengths=(1, 5),
        batch_sizes=(40,),
        tasks=2,
        points=2,
    )
    reptile.main(options)
    record = json.loads((options.out / "reptile.json").read_text())
    assert [len(record[name]) for name in ("combinations", "overlap")] == [10, 2]
    curve = record["combinations"]["g1 + g2 + g3 + g4"]["1"]
    assert [point["iteration"] for point in curve] == [2, 4]
    assert set(record["overlap"]["steps"]["FOMAML, shared tail, cycling"]) == {"1", "5"}
    assert (options.out / "reptile-combinations.png").stat().st_size > 10_000
    assert (options.out / "reptile-overlap.png").stat().st_size > 10_000

    stopped = options.runs / "reptile-sum-4-1"
    for path in stopped.glob("checkpoint*"):
        path.unlink()
    iterations = []
    go = reptile.Run.learn
    monkeypatch.setattr(reptile.Run, "learn", lambda run, progress: iterations.append(run.folder) or go(run, progress))
    reptile.main(options)
    assert iterations == [stopped] * 4  # what is finished is taken as it is
    assert json.loads((options.out / "reptile.json").read_text())["combinations"] == record["combinations"]
    with pytest.raises(ValueError, match="reptile-sum-1-1 holds a run with other options; give another folder"):
        reptile.main(replace(options, iterations=5))


def test_combined_gradients_share_no_drawing() -> None:
    reptile = loaded("reptile")
    for label, cell in reptile.combinations(reptile.Options()).items():
        steps, size = cell.algorithm.steps, cell.algorithm.batch_size
        inner = [positions("cycle", 25 * max(steps - 1, 1), size, step).tolist() for step in range(steps - 1)]
        assert sorted(position for batch in inner for position in batch) == list(range(25 * (steps - 1)))
        assert cell.algorithm.tail == "separate"
        assert (cell.family.queries, cell.family.train_shots) == (5, 5 * max(steps - 1, 1))
        assert cell.algorithm.combine == ("sum" if "+" in label or steps == 1 else "last")
        assert cell.outer.learning_rate == pytest.approx(0.5 / (steps if label.endswith(f"/ {steps}") else 1))


@pytest.mark.usefixtures("five_alphabets", "one_thread")
def test_leap_takes_the_better_outer_steps_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leap = loaded("leap")
    monkeypatch.setattr(leap, "ALPHABETS", {"validation": 1, "test": 2})
    options = leap.Options(
        runs=tmp_path / "runs", out=tmp_path / "out", iterations=2, meta_batch_size=2, filters=2, steps=2
    )
    leap.main(options)
    record = json.loads((options.out / "leap.json").read_text())
    assert list(record["area"]) == ["Leap", "Reptile", "FOMAML", "joint pre-training", "random start"]
    assert [len(tried) for tried in record["outer"].values()] == [2, 2, 2, 2]
    for name, area in record["area"].items():
        assert area["mean"] == pytest.approx(sum(record["curve"][name]) / 3)  # before, and after each of two steps
        assert len(area["per_task"]) == 2
    for name, more in record["more than Leap"].items():
        assert more["mean"] == pytest.approx(record["area"][name]["mean"] - record["area"]["Leap"]["mean"])
    assert (options.out / "leap.png").stat().st_size > 10_000

    kept = {path: path.read_bytes() for path in options.runs.glob("*/checkpoint.pt")}
    assert len(kept) == 8
    leap.main(options)  # what is finished is taken as it is
    assert {path: path.read_bytes() for path in kept} == kept
    assert json.loads((options.out / "leap.json").read_text()) == record
    with pytest.raises(ValueError, match=r"leap-leap-0.1-0 was begun with algorithm.steps=2, and 3 is asked for now"):
        leap.main(replace(options, steps=3))
    with pytest.raises(SystemExit, match=r"leap-leap-0.1-0 stands at iteration 2: the same command goes on to more"):
        leap.main(replace(options, iterations=1))


@pytest.mark.usefixtures("five_alphabets")
def test_leaps_contenders_train_on_as_many_drawings_of_the_same_tasks() -> None:
    leap = loaded("leap")
    options = leap.Options()
    assert {name: len(one.outers) for name, one in leap.contenders(options).items()} == dict.fromkeys(
        ("Leap", "Reptile", "FOMAML", "joint pre-training"), 2
    )
    tasks = leap.family(options).sample(2, "train", torch.Generator().manual_seed(0))
    assert (tasks.support.shape, tasks.query.shape) == ((2, 20, 15), (2, 20, 5))
    assert not {*tasks.support.flatten().tolist()} & {*tasks.query.flatten().tolist()}


@pytest.mark.usefixtures("one_thread")
def test_imaml_tells_memory_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imaml = loaded("imaml")
    options = imaml.Options(
        out=tmp_path, steps=(1, 4), filters=2, size=8, inner_steps=(1, 300), solver_steps=(1, 40), long=(1000, 80),
        tasks=2, hidden=(4,),
    )  # fmt: skip
    imaml.main(options)
    record = json.loads((tmp_path / "imaml.json").read_text())
    assert record["bytes"]["maml"][1] > 2 * record["bytes"]["maml"][0]
    assert record["bytes"]["imaml"][1] == record["bytes"]["imaml"][0] > 0
    (rough, few), (early, near) = record["errors"]["1"], record["errors"]["40"]
    assert near < 1e-2 * min(rough, few, early)
    assert record["long solve"]["inner/gradient"] < 1e-4
    assert "| `imaml` | 0.0 MiB | 0.0 MiB |" in capsys.readouterr().out
    assert torch.get_default_dtype() == torch.float32


def test_kept_tensors_count_once_for_each_storage() -> None:
    imaml = loaded("imaml")
    values = torch.zeros(10)
    one, other, apart = imaml.Kept(values), imaml.Kept(values[:5]), imaml.Kept(torch.zeros(3))
    assert (imaml.Kept.now, imaml.Kept.most) == (52, 52)
    del one
    assert imaml.Kept.now == 52
    del other, apart
    assert (imaml.Kept.now, imaml.Kept.most) == (0, 52)


def kept(name: str) -> Any:
    """Return what an experiment wrote when its tables were put into the documentation."""
    return json.loads((FOLDER / "found" / f"{name}.json").read_text("utf-8"))


def test_the_page_on_learners_shows_what_was_found() -> None:
    page = (FOLDER.parent / "learners.md").read_text("utf-8")
    assert loaded("leap").table(kept("leap")) in page
    for table in loaded("imaml").tables(kept("imaml")):
        assert table in page
    uncertainty, found = loaded("uncertainty"), kept("uncertainty")
    assert uncertainty.active_table(found["active"]) in page
    assert uncertainty.calibration_table(found["calibration"]) in page


@pytest.mark.parametrize("name", ["leap", "imaml", "uncertainty"])
def test_what_was_found_has_the_options_of_the_command(name: str) -> None:
    usual = asdict(loaded(name).Options())
    told = kept(name)["options"]
    assert told == json.loads(json.dumps(usual, default=str))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_sb3_finetuning_goes_on_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finetuning = loaded("sb3_finetuning")
    options = finetuning.Options(
        runs=tmp_path, out=tmp_path / "out", seeds=(0,), iterations=1, meta_batch_size=2, updates=1
    )
    finetuning.main(options)
    record = json.loads((options.out / "sb3-finetuning.json").read_text())
    assert set(record["curves"]) == {f"{start} {name}" for start in finetuning.STARTS for name in finetuning.SETTINGS}
    assert all(len(curve) == 2 for curves in record["curves"].values() for curve in curves.values())
    assert list(record["maml"]) == ["0", "1", "2", "3"]
    assert (options.out / "sb3-finetuning.png").stat().st_size > 10_000

    (tmp_path / "sb3-ppo-meta-large-0.json").unlink()
    learn, learnt = finetuning.PPO.learn, []
    monkeypatch.setattr(
        finetuning.PPO, "learn", lambda model, *rest, **more: learnt.append(learn(model, *rest, **more))
    )
    finetuning.main(options)
    assert len(learnt) == 1  # what is finished is taken as it is
    assert json.loads((options.out / "sb3-finetuning.json").read_text()) == record


@pytest.mark.usefixtures("one_thread")
def test_sinusoid_draws(tmp_path: Path) -> None:
    sinusoid = loaded("sinusoid")
    sinusoid.main(sinusoid.Options(runs=tmp_path, out=tmp_path / "out", iterations=3, tasks=3, shots=(5,)))
    record = json.loads((tmp_path / "out" / "sinusoid.json").read_text())
    assert list(record["results"]) == ["5 points, all inputs", "5 points, one half of the inputs"]
    assert len(record["results"]["5 points, all inputs"]["maml"]["0"]["mean"]) == 11
    assert (tmp_path / "out" / "sinusoid-error.png").stat().st_size > 10_000
    assert (tmp_path / "out" / "sinusoid-curves.png").stat().st_size > 10_000


@pytest.mark.usefixtures("one_thread")
def test_uncertainty_asks_for_points_and_draws(tmp_path: Path) -> None:
    uncertainty = loaded("uncertainty")
    options = uncertainty.Options(
        runs=tmp_path, out=tmp_path / "out", iterations=2, particles=2, noises=(0.1,), tasks=3, rounds=2, steps=1
    )
    uncertainty.main(options)
    record = json.loads((options.out / "uncertainty.json").read_text())
    active = record["active"]
    assert {len(errors) for errors in active.values()} == {3}  # before, and after each of two rounds
    asking, at_random = active["BMAML, where particles differ most"], active["BMAML, random points"]
    assert asking[0] == at_random[0] and asking[1:] != at_random[1:]  # both know the same two points at first
    assert len(record["ensemble, where members differ most"]["median"]) == 3
    less = active["BMAML less the ensemble, random points"][0]["mean"]
    means = [active[f"{label}, random points"][0]["mean"] for label in ("BMAML", "MAML ensemble")]
    assert less == pytest.approx(means[0] - means[1])
    assert list(record["calibration"]) == ["BMAML, noise 0.1", "MAML ensemble"]
    assert all(len(found["coverage"]) == len(uncertainty.LEVELS) for found in record["calibration"].values())
    assert (options.out / "uncertainty-active.png").stat().st_size > 10_000
    assert (options.out / "uncertainty-calibration.png").stat().st_size > 10_000


@pytest.mark.usefixtures("one_thread")
def test_an_ensemble_averages_networks_of_different_seeds(tmp_path: Path) -> None:
    uncertainty = loaded("uncertainty")
    options = uncertainty.Options(runs=tmp_path, iterations=2, particles=3, tasks=4, steps=2)
    together = uncertainty.ensemble(options)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"uncertainty-maml-{seed}" for seed in range(3)]
    tasks = uncertainty.sample_tasks(uncertainty.family(options), 4)
    support = tasks.draw("support", torch.Generator().manual_seed(0))
    inputs = support.inputs[:, :2]

    def told(trained: Any) -> torch.Tensor:
        states = uncertainty.adapted(trained, tasks.descriptors, support, options)
        return uncertainty.outputs(trained, states, inputs)

    each = [told(together._replace(members=(params,))) for params in together.members]
    assert torch.equal(told(together), torch.cat(each, dim=1))
    assert told(together).shape == (4, 3, 2, 1)
    assert told(together).std(1).min() > 0


def test_normal_errors_are_calibrated() -> None:
    uncertainty = loaded("uncertainty")
    errors = torch.randn(2000, 50, generator=torch.Generator().manual_seed(0))
    told = uncertainty.coverage(errors, torch.full_like(errors, 0.6), 0.8)  # together a standard deviation of 1
    assert told == pytest.approx(uncertainty.LEVELS, abs=0.01)
    scales = [uncertainty.likelihood(errors, torch.zeros_like(errors), scale) for scale in (0.8, 1.0, 1.25)]
    assert max(scales) == scales[1] == pytest.approx(-1.419, abs=0.01)  # minus the entropy of a normal
