"""Callbacks of meta-training: they change nothing that is learnt, stop it with a checkpoint, and survive a kill."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from metarl import evaluation, runs, training
from metarl.algorithms.maml import MAML
from metarl.control.sampling import Sampling
from metarl.networks.options import Network
from metarl.outer.gradient import Adam
from metarl.runs import logger
from metarl.trained import Trained
from metarl.training import open_run
from metarl.training.callbacks import Evaluate, KeepCheckpoints, StopAtScore
from metarl.training.progress import Callback, Iteration
from metarl.training.settings import Settings
from metarl.types import rollout_of
from metarl_envs.bandit import Bandit

ALGORITHM, FAMILY = MAML(network=Network(hidden=(8,))), Bandit(arms=3, sampling=Sampling(episodes=2, horizon=5))
EVALUATE = Evaluate(every=2, tasks=4)


def trained(out: Path, callbacks: list[Callback], iterations: int = 6, **options: Any) -> Trained:
    settings = Settings(iterations, 3, device="cpu", checkpoint_every=4, **options)
    return training.train(ALGORITHM, FAMILY, Adam(), settings, out, callbacks=callbacks)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six iterations with an evaluation after every second, that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    trained(out, [EVALUATE])
    return out


def params(folder: Path, name: str = runs.CHECKPOINT) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = runs.load_checkpoint(folder / name)["params"]
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def curve(folder: Path) -> Any:
    return json.loads((folder / runs.CURVE).read_text())


def test_callbacks_change_nothing_that_is_learnt(whole: Path, tmp_path: Path) -> None:
    trained(tmp_path, [])
    assert same(params(tmp_path), params(whole))
    assert not (tmp_path / runs.CURVE).exists()


def test_they_are_told_every_iteration() -> None:
    told: list[Iteration] = []
    settings = Settings(3, 3, device="cpu", log_every=2)
    result = training.train(ALGORITHM, FAMILY, Adam(), settings, callbacks=[told.append])
    assert [one.progress.iteration for one in told] == [1, 2, 3]
    assert [one.row for one in told] == [None, *result.rows]
    assert same(told[-1].progress.params, result.params)
    assert told[0].run.family == FAMILY


def test_they_see_what_the_iteration_learnt_from() -> None:
    told: list[Iteration] = []
    training.train(ALGORITHM, FAMILY, Adam(), Settings(3, 3, device="cpu"), callbacks=[told.append])
    for one in told:
        assert one.experience is not None and one.row is not None
        (support,), query = one.experience.supports, rollout_of(one.experience.query)
        for step, rollout in enumerate([rollout_of(support), query]):
            assert rollout.rewards.shape == (3, 2, 5)
            expected = rollout.rewards.sum(-1).mean().item()
            assert one.row[f"return/step_{step}"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("schedules", [{}, {"meta_batch_size": "2/3@0.5"}])
def test_they_see_labelled_examples_also_with_schedules(schedules: dict[str, str]) -> None:
    told: list[Iteration] = []
    settings = Settings(2, 2, device="cpu", schedules=schedules)
    training.train(ALGORITHM, "sinusoid", settings=settings, callbacks=[told.append])
    first, second = (one.experience for one in told)
    assert first is not None and second is not None
    assert [len(one.descriptors) for one in (first, second)] == [2, 3 if schedules else 2]
    assert not torch.equal(first.query.select([0]).inputs, second.query.select([0]).inputs)  # type: ignore[union-attr]


def test_the_curve_is_that_of_held_out_tasks(whole: Path) -> None:
    points = curve(whole)
    assert [point["iteration"] for point in points] == [2, 4, 6]
    learner = ALGORITHM.build(FAMILY.spec)
    found = evaluation.evaluate(learner, params(whole), FAMILY, tasks=4, steps=1, split="validation")
    assert points[-1]["metrics"] == found.metrics
    assert points[-1]["score"] == found.metrics["return/step_1"]["mean"]
    best = max(points, key=lambda point: point["score"])
    run = training.load(whole)
    assert run.restore(whole / runs.BEST_EVALUATION).iteration == best["iteration"]


def test_a_run_killed_after_an_evaluation_goes_on_exactly(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(told: Iteration) -> None:
        if told.progress.iteration == 6:  # the last checkpoint is of iteration 4
            raise Killed

    with pytest.raises(Killed):
        trained(tmp_path, [EVALUATE, die])
    assert [point["iteration"] for point in curve(tmp_path)] == [2, 4, 6]
    training.resume(tmp_path, callbacks=[EVALUATE])
    assert curve(tmp_path) == curve(whole)
    assert same(params(tmp_path), params(whole))
    assert same(params(tmp_path, runs.BEST_EVALUATION), params(whole, runs.BEST_EVALUATION))


def test_false_stops_with_a_checkpoint_to_go_on_from(whole: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    def count(told: Iteration) -> None:
        asked.append(told.progress.iteration)

    result = trained(tmp_path, [lambda told: told.progress.iteration != 3, count])
    assert result.interrupted
    assert asked == [1, 2, 3], "all callbacks are asked, whatever the first one says"
    assert runs.load_checkpoint(tmp_path / runs.CHECKPOINT)["iteration"] == 3
    training.resume(tmp_path)
    assert same(params(tmp_path), params(whole))
    assert len(logger.read_progress(tmp_path / runs.PROGRESS)) == 6


def test_a_score_stops_it(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", [], iterations=5)
    scores = [row["return/step_1"] for row in whole.rows]
    reached = next(index for index, score in enumerate(scores, start=1) if score >= sorted(scores)[2])
    stopped = trained(tmp_path / "stopped", [StopAtScore(sorted(scores)[2])], iterations=5)
    assert [row["iteration"] for row in stopped.rows] == list(range(1, reached + 1))
    assert not trained(tmp_path / "high", [StopAtScore(max(scores) + 1)], iterations=5).interrupted
    assert len(trained(tmp_path / "low", [Evaluate(every=2, tasks=2, stop_at=-1.0)]).rows) == 2
    assert len(trained(tmp_path / "never", [Evaluate(every=2, tasks=2, stop_at=100.0)]).rows) == 6


def test_checkpoints_are_kept(whole: Path, tmp_path: Path) -> None:
    trained(tmp_path, [KeepCheckpoints(every=3)])
    assert {path.name for path in tmp_path.glob("checkpoint-*.pt")} == {"checkpoint-3.pt", "checkpoint-6.pt"}
    kept = training.load(tmp_path).restore(tmp_path / "checkpoint-6.pt")
    assert kept.iteration == 6
    assert same(kept.params, params(whole))
    with pytest.raises(ValueError, match="KeepCheckpoints needs a run folder"):
        training.train(ALGORITHM, FAMILY, Adam(), Settings(1, 2), callbacks=[KeepCheckpoints()])


def test_a_run_that_replaces_another_leaves_nothing_of_it(tmp_path: Path) -> None:
    trained(tmp_path, [EVALUATE, KeepCheckpoints(every=3)])
    training.train(ALGORITHM, FAMILY, Adam(), Settings(1, 2), tmp_path, overwrite=True)
    assert not [*tmp_path.glob("checkpoint-*.pt"), *tmp_path.glob("*evaluation*")]


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="every=0 and tasks=20 are at least 1"):
        Evaluate(every=0)
    with pytest.raises(ValueError, match="every=0 must be at least 1"):
        KeepCheckpoints(every=0)


VALIDATION = {"validate_every": EVALUATE.every, "validation_tasks": EVALUATE.tasks, "validation_steps": EVALUATE.steps}


def test_settings_ask_for_validation_and_a_resumed_run_goes_on_with_it(whole: Path, tmp_path: Path) -> None:
    trained(tmp_path, [lambda told: told.progress.iteration < 3], **VALIDATION)
    training.resume(tmp_path)
    assert curve(tmp_path) == curve(whole)
    assert same(params(tmp_path, runs.BEST_EVALUATION), params(whole, runs.BEST_EVALUATION))
    best = max(curve(tmp_path), key=lambda point: point["score"])
    assert open_run(tmp_path, "validated").iteration == best["iteration"]


def test_a_run_without_validation_has_no_such_checkpoint(tmp_path: Path) -> None:
    trained(tmp_path, [], iterations=1)
    with pytest.raises(runs.RunError, match="only training with --validate-every"):
        open_run(tmp_path, "validated")


@pytest.mark.parametrize("name", VALIDATION)
def test_settings_of_validation_that_make_no_sense_are_refused(name: str) -> None:
    settings = VALIDATION | {name: -1}
    with pytest.raises(ValueError, match="at least"):
        Settings(**settings)
