"""A run, opened: the parameters of its checkpoints, tasks of one's own, and adapted policies."""

import pickle
from pathlib import Path

import pytest
import torch

import metarl
from metarl import evaluation, runs
from metarl.control.sampling import Sampling
from metarl.control.tasks import tasks_with
from metarl_envs.navigation import PointNavigation

FAMILY = PointNavigation(sampling=Sampling(episodes=3, horizon=5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    metarl.train(metarl.MAML(), FAMILY, settings=metarl.Settings(iterations=3, meta_batch_size=2), out=out)
    return out


@pytest.mark.parametrize(("checkpoint", "file"), [("last", runs.CHECKPOINT), ("best", runs.BEST)])
def test_a_run_opens_with_the_parameters_of_its_checkpoint(folder: Path, checkpoint: str, file: str) -> None:
    opened, saved = metarl.open_run(folder, checkpoint), runs.load_checkpoint(folder / file)
    assert opened.iteration == saved["iteration"]
    assert opened.family == FAMILY
    assert all(torch.equal(opened.params[name], saved["params"][name]) for name in opened.params)


def test_what_is_no_run_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(runs.RunError, match="contains no run"):
        metarl.open_run(tmp_path)
    with pytest.raises(ValueError, match="expected one of last, best, validated"):
        metarl.open_run(folder, "first")


def test_adapting_is_what_evaluation_scores(folder: Path) -> None:
    opened = metarl.open_run(folder)
    adapted = opened.adapt(opened.tasks(4), steps=2)
    found = evaluation.evaluate(opened.learner, opened.params, opened.family, tasks=4, steps=2)
    returns = torch.stack([(step.rollout.rewards * step.rollout.mask).sum(-1).mean(-1) for step in adapted])
    torch.testing.assert_close(returns, found.scores["return"])


def test_a_task_of_ones_own(folder: Path) -> None:
    opened = metarl.open_run(folder)
    task = opened.task(goal=(0.25, -0.5))
    assert task.parameters["goal"].tolist() == [[0.25, -0.5]]
    assert task.descriptors.tolist() == [[0.25, -0.5]]
    rollout = opened.adapt(task, steps=0)[0].rollout
    away = rollout.observations[0, :, 1] - torch.tensor([0.25, -0.5])
    torch.testing.assert_close(rollout.rewards[0, :, 0], -away.norm(dim=-1))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"goal": (0.1, 0.6)}, r"goal is \[0.1, 0.6\]: expected an element of Box"),
        ({"goal": 0.1}, r"goal is float64 \(1,\) where for each task, an element of Box"),
        ({"target": (0.1, 0.2)}, r"\['target'\] were given: expected goal"),
        ({}, r"\[\] were given: expected goal"),
    ],
)
def test_what_is_no_task_is_refused(folder: Path, given: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        metarl.open_run(folder).task(**given)


def test_families_of_examples_have_no_tasks_to_give() -> None:
    family = metarl.load("tasks", "sinusoid")()
    with pytest.raises(ValueError, match="Sinusoid is no control family"):
        tasks_with(family, {"amplitude": [1.0]})


@pytest.mark.parametrize(
    "name", ["ant-direction", "ant-goal", "ant-velocity", "bandit", "half-cheetah-velocity", "tabular-mdp"]
)
def test_given_tasks_are_described_as_sampled_ones_are(name: str) -> None:
    family = metarl.load("tasks", name)()
    sampled = family.sample(3, "train", torch.Generator().manual_seed(1))
    again = tasks_with(family, sampled.parameters)
    assert torch.equal(again.descriptors, sampled.descriptors)


def test_an_opened_run_is_pickled(folder: Path) -> None:
    opened = metarl.open_run(folder, device="cpu")
    again = pickle.loads(pickle.dumps(opened))
    ours, theirs = (one.adapt(one.tasks(2))[1].rollout for one in (opened, again))
    assert torch.equal(ours.rewards, theirs.rewards)
    assert (again.family, again.algorithm, again.iteration) == (opened.family, opened.algorithm, 3)
