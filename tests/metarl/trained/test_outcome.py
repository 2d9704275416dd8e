"""What training returns and runs open as: parameters, rows, tasks of one's own, and adapted policies."""

import ast
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import metarl
from metarl import evaluation, runs
from metarl.control.sampling import Sampling
from metarl.control.tasks import tasks_with
from metarl.runs import logger
from metarl_envs.navigation import PointNavigation

FAMILY = PointNavigation(sampling=Sampling(episodes=3, horizon=5))


SETTINGS = metarl.Settings(iterations=3, meta_batch_size=2, device="cpu")


@pytest.fixture(scope="module")
def returned(tmp_path_factory: pytest.TempPathFactory) -> tuple[metarl.Trained, Path]:
    out = tmp_path_factory.mktemp("runs") / "run"
    return metarl.train(metarl.MAML(), FAMILY, settings=SETTINGS, out=out), out


@pytest.fixture(scope="module")
def folder(returned: tuple[metarl.Trained, Path]) -> Path:
    return returned[1]


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


def test_training_returns_what_its_folder_opens_as(returned: tuple[metarl.Trained, Path]) -> None:
    result, opened = returned[0], metarl.open_run(returned[1])
    assert type(result) is type(opened)
    assert result.params.keys() == opened.params.keys()
    assert all(torch.equal(result.params[name], opened.params[name]) for name in result.params)
    assert list(opened.rows) == list(result.rows)
    for name in ("algorithm", "family", "iteration", "interrupted", "signal"):
        assert getattr(result, name) == getattr(opened, name), name
    ours, theirs = (one.adapt(one.task(goal=(0.1, 0.2)))[1].rollout for one in (result, opened))
    assert torch.equal(ours.rewards, theirs.rewards)


def test_a_run_without_a_folder_adapts(tmp_path: Path) -> None:
    result = metarl.train(metarl.MAML(), FAMILY, settings=replace(SETTINGS, iterations=1))
    assert len(result.adapt(result.tasks(2), steps=1)) == 2
    assert result.iteration == len(result.rows) == 1
    assert not result.interrupted


def test_a_stopped_run_is_interrupted_also_when_opened_and_has_all_rows_when_resumed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    stopped = metarl.train(metarl.MAML(), FAMILY, settings=SETTINGS, out=out, callbacks=[lambda iteration: False])
    opened = metarl.open_run(out)
    assert (stopped.interrupted, stopped.iteration, opened.interrupted, opened.iteration) == (True, 1, True, 1)
    resumed, opened = metarl.resume(out), metarl.open_run(out)
    assert [row["iteration"] for row in resumed.rows] == [2, 3]
    assert list(opened.rows) == [*stopped.rows, *resumed.rows]
    assert not opened.interrupted
    before = metarl.open_run(out, "previous")
    assert (before.iteration, [row["iteration"] for row in before.rows]) == (1, [1])


def test_rows_have_no_empty_cells(tmp_path: Path) -> None:
    (tmp_path / "progress.csv").write_text("iteration,loss,validation\n1,0.5,\n2,0.25,1e-3\n3,0.1,0.0\n")
    assert logger.read_rows(tmp_path / "progress.csv", 2) == [
        {"iteration": 1, "loss": 0.5},
        {"iteration": 2, "loss": 0.25, "validation": 0.001},
    ]
    assert logger.read_rows(tmp_path / "absent.csv", 2) == []


def test_a_policy_is_pickled_and_acts_alike_in_another_process(folder: Path, tmp_path: Path) -> None:
    opened = metarl.open_run(folder, device="cpu")
    policy = opened.policy(opened.task(goal=(0.25, -0.5)))
    observations = torch.tensor([[0.1, -0.2], [0.3, 0.4]])
    (tmp_path / "policy.pickle").write_bytes(pickle.dumps(policy))
    code = (
        "import pathlib, pickle, torch\n"
        "policy = pickle.loads(pathlib.Path('policy.pickle').read_bytes())\n"
        f"print(policy(torch.tensor({observations.tolist()})).mean.tolist())"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    torch.testing.assert_close(torch.tensor(ast.literal_eval(told.stdout)), policy(observations).mean)
