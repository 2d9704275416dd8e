"""``metarl export``, ``metarl baseline`` and meta-training that starts from a model of Stable-Baselines3."""

import json
import signal
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC

import metarl
from metarl import cli, runs, sb3, training
from metarl.algorithms.maml import MAML
from metarl.control.gymnasium_family import GymnasiumFamily
from metarl.control.sampling import Sampling
from metarl.control.tasks import tasks_with
from metarl.networks.options import Network
from metarl.outer.gradient import Adam
from metarl.runs import logger
from metarl.seeding import stream
from metarl.training.settings import Settings
from metarl_envs.navigation import PointNavigation

FAMILY = PointNavigation(sampling=Sampling(episodes=2, horizon=5))
ALGORITHM = MAML(network=Network(hidden=(8,), activation="tanh"))
SMALL = ["--tasks.sampling.episodes", "2", "--tasks.sampling.horizon", "5"]
PPO_OPTIONS = ["--timesteps", "64", "--num-envs", "2", "--n-steps", "16", "--batch-size", "16", "--hidden", "8"]

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    training.train(ALGORITHM, FAMILY, Adam(), Settings(2, 3, device="cpu"), out)
    return out


@pytest.fixture(scope="module")
def model(run: Path) -> Path:
    path = run.parent / "model.zip"
    assert cli.main(["export", str(run), "--to", "sb3", str(path)]) == 0
    return path


def refused(capsys: Captured, *arguments: Any) -> str:
    """Return the one line that answers a wrong request."""
    assert cli.main(list(map(str, arguments))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_export_writes_what_the_run_has_learnt(run: Path, model: Path, tmp_path: Path, capsys: Captured) -> None:
    observations, trained = np.ones((1, 2), dtype=np.float32), metarl.open_run(run)
    expected, _ = sb3.policy(trained).predict(observations, deterministic=True)
    np.testing.assert_allclose(PPO.load(model).predict(observations, deterministic=True)[0], expected, atol=1e-6)

    adapted = tmp_path / "new" / "adapted.zip"
    assert cli.main(["export", str(run), str(adapted), "--task", "goal=0.3,-0.4", "--steps", "2"]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {adapted}: stable_baselines3.PPO.load opens it")
    expected, _ = sb3.policy(trained, trained.task(goal=(0.3, -0.4)), 2).predict(observations, deterministic=True)
    np.testing.assert_allclose(PPO.load(adapted).predict(observations, deterministic=True)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--steps", "1"], "1 adaptation steps need a task to adapt to"),
        (["--steps", "-1"], "--steps -1: expected at least 0"),
        (["--task", "goal=far"], "--task goal=far: expected NAME=NUMBER"),
        (["--task", "goal=3,4"], "the task parameter goal is"),
        (["--task", "velocity=1"], "['velocity'] were given: expected goal"),
        (["--to", "jax"], "invalid choice"),
    ],
)
def test_a_wrong_export_is_answered_in_one_line(
    run: Path, tmp_path: Path, capsys: Captured, options: list[str], told: str
) -> None:
    assert told in refused(capsys, "export", run, tmp_path / "model.zip", *options)
    assert not list(tmp_path.iterdir())


def test_export_does_not_replace_a_file_unasked(run: Path, model: Path, tmp_path: Path, capsys: Captured) -> None:
    assert "exists; choose another path, or replace it with --overwrite" in refused(capsys, "export", run, model)
    assert cli.main(["export", str(run), str(model), "--overwrite"]) == 0
    assert "contains no run" in refused(capsys, "export", tmp_path, tmp_path / "model.zip")


def test_training_starts_from_an_actor(run: Path, model: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "run"
    command = ["train", "maml", "point-navigation", "--recipe", "none", "--out", str(out), "--iterations", "1",
               "--meta-batch-size", "2",
               "--algorithm.hidden", "8", "--algorithm.activation", "tanh", "--device", "cpu", *SMALL]  # fmt: skip
    assert cli.main([*command, "--start-from", str(model)]) == 0
    acted = runs.load_checkpoint(out / runs.BEST)["params"]  # the parameters that acted in iteration 1
    assert all(torch.equal(acted[name], value) for name, value in metarl.open_run(run).params.items())
    assert runs.read_config(out)["start_from"] == runs.digests(acted)
    told = refused(capsys, *command, "--overwrite", "--start-from", model, "--algorithm.hidden", "9")
    assert "shapes [(8, 2), (8,), (2, 8), (2,), (2,)] where MAML has [(9, 2)" in told
    assert "does not exist" in refused(capsys, *command, "--overwrite", "--start-from", tmp_path / "no.zip")


def test_labelled_examples_do_not_start_from_an_actor(model: Path, tmp_path: Path, capsys: Captured) -> None:
    command = ["train", "maml", "sinusoid", "--out", tmp_path / "run", "--start-from", model]
    assert "acts, and these tasks are no environments" in refused(capsys, *command)
    assert not (tmp_path / "run").exists()


def test_a_run_killed_at_its_start_knows_what_it_started_from(model: Path, tmp_path: Path) -> None:
    actor, settings = sb3.import_actor(model, ALGORITHM, FAMILY), Settings(2, 3, device="cpu")
    given = {name: actor[name] for name in ("head.weight", "head.bias")}
    whole = training.train(ALGORITHM, FAMILY, Adam(), settings, tmp_path / "whole", start_from=given)
    sources = training.Source(ALGORITHM), training.Source(FAMILY)
    killed = training.start(*sources, Adam(), settings, tmp_path / "killed", start_from=given)
    assert killed.claim is not None
    killed.claim.release()  # as the death of its process does
    first = killed.first().params
    drawn = ALGORITHM.build(FAMILY.spec).init(stream(settings.seed, "initialisation"))
    assert all(torch.equal(first[name], given.get(name, drawn[name])) for name in drawn)
    resumed = training.resume(tmp_path / "killed")
    assert all(torch.equal(resumed.params[name], value) for name, value in whole.params.items())
    assert resumed.rows[0]["return/step_0"] == whole.rows[0]["return/step_0"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"head.weight": torch.zeros(2, 3)}, r"head.weight has shape \(2, 3\) where \(2, 8\) was expected"),
        ({"tail.weight": torch.zeros(2, 8)}, r"tail.weight has shape \(2, 8\) where no such parameter was expected"),
    ],
)
def test_parameters_of_another_network_are_refused(given: dict[str, torch.Tensor], told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        training.train(ALGORITHM, FAMILY, Adam(), Settings(1, 2), tmp_path / "run", start_from=given)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "ppo"
    assert cli.main(["baseline", "ppo", "point-navigation", "--out", str(out), "--quiet", "--tasks", "3",
                     *PPO_OPTIONS, *SMALL]) == 0  # fmt: skip
    return out


def test_a_baseline_is_a_run_folder(baseline: Path, run: Path) -> None:
    rows = logger.read_progress(baseline / runs.PROGRESS)
    assert [row["iteration"] for row in rows] == ["1", "2"]
    assert [row["time/total_timesteps"] for row in rows] == ["32", "64"]
    assert [row["return/step_0"] for row in rows] == [row["rollout/ep_rew_mean"] for row in rows]
    assert list(baseline.glob("events.out.tfevents.*"))
    config = runs.read_config(baseline)
    assert (config["baseline"], config["settings"]["timesteps"], config["algorithm"]["options"]["n_steps"]) == (
        "ppo", 64, 16
    )  # fmt: skip
    assert runs.rebuild(config["algorithm"], None) == sb3.PPOBaseline(n_steps=16, batch_size=16, hidden=(8,))
    assert runs.rebuild(config["tasks"], "tasks") == FAMILY
    assert cli.main(["plot", str(baseline), str(run), "--out", str(baseline)]) == 0
    assert (baseline / "learning.png").stat().st_size > 10_000


def test_a_baseline_is_scored_on_the_tasks_of_evaluations(baseline: Path) -> None:
    found, model = runs.read_evaluation(baseline), PPO.load(baseline / runs.MODEL)
    tasks = FAMILY.sample(3, "test", stream(0, "tasks/test"))
    assert list(found["metrics"]) == ["return/step_0"]
    assert (found["tasks"], found["split"], found["steps"], found["timesteps"]) == (3, "test", 0, 64)
    scores = sb3.returns(model, FAMILY, tasks, deterministic=True)
    goals = [tasks_with(FAMILY, {"goal": goal.unsqueeze(0)}) for goal in tasks.parameters["goal"]]
    assert scores == pytest.approx([sb3.returns(model, FAMILY, goal, deterministic=True)[0] for goal in goals])
    # A step is short of 0.15 m: the returns of five of them are near five times the distance to the goal.
    assert found["metrics"]["return/step_0"]["per_task"] == pytest.approx(scores, abs=1.5)


def test_a_baseline_is_neither_resumed_nor_adapted(baseline: Path, tmp_path: Path, capsys: Captured) -> None:
    for request in (["resume", baseline], ["evaluate", baseline], ["export", baseline, tmp_path / "model.zip"]):
        assert "holds the baseline ppo, which does not adapt and is not resumed" in refused(capsys, *request)
    told = refused(capsys, "baseline", "ppo", "point-navigation", "--out", baseline, *PPO_OPTIONS, *SMALL)
    assert "already contains a run" in told


def test_sac_learns_a_few_tasks(tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "sac"
    options = [
        "--timesteps",
        "40",
        "--num-envs",
        "2",
        "--learning-starts",
        "10",
        "--hidden",
        "8",
        "--buffer-size",
        "100",
        "--batch-size",
        "8",
        "--train-tasks",
        "1",
        "--tasks",
        "2",
        "--deterministic",
    ]
    assert cli.main(["baseline", "sac", "point-navigation", "--out", str(out), *options, *SMALL]) == 0
    said = capsys.readouterr().out
    assert "total_timesteps" in said
    assert f"done: {out}. Next: metarl plot {out} OTHER_RUN" in said
    rows = logger.read_progress(out / runs.PROGRESS)
    assert [row["time/total_timesteps"] for row in rows] == ["10", "20", "30", "40"]
    assert all(row["iteration"] and row["return/step_0"] for row in rows)
    assert isinstance(SAC.load(out / runs.MODEL).predict(np.zeros(2))[0], np.ndarray)
    assert runs.read_evaluation(out)["deterministic"] is True


def test_ctrl_c_saves_the_model(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sb3.TaskVecEnv, "step_wait", interrupting(sb3.TaskVecEnv.step_wait, at=20))
    out = tmp_path / "run"
    arguments = ["baseline", "ppo", "point-navigation", "--out", str(out), "--quiet", *PPO_OPTIONS, *SMALL]
    assert cli.main(arguments) == 130
    assert "stopped after 40 steps" in capsys.readouterr().out
    assert PPO.load(out / runs.MODEL).num_timesteps == 40
    assert not (out / runs.EVALUATION).exists()


def interrupting(step: Any, at: int) -> Any:
    """Press Ctrl-C before step number ``at``."""
    calls = iter(range(1, 1000))

    def spied(env: Any) -> Any:
        if next(calls) == at:
            signal.raise_signal(signal.SIGINT)
        return step(env)

    return spied


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "baseline needs ppo or sac, and tasks"),
        (["ppo"], "baseline needs ppo or sac, and tasks"),
        (["maml", "bandit"], "baseline needs ppo or sac, and tasks"),
        (["ppo", "banditt"], "bandit"),
        (["ppo", "sinusoid"], "Sinusoid is no control family"),
        (["sac", "bandit"], "sac needs continuous actions, but the action space is Discrete(5); use ppo"),
        (["ppo", "bandit", "--timesteps", "0"], "timesteps=0 must be at least 1"),
        (["ppo", "bandit", "--train-tasks", "0"], "train_tasks=0 must be at least 1"),
        (["ppo", "bandit", "--learning-rate", "0"], "learning_rate=0.0 must be positive"),
        (["ppo", "bandit", "--gamma", "2"], "gamma=2.0: expected a number in [0, 1]"),
        (["sac", "point-navigation", "--hidden", "0"], "hidden=(0,) must be at least 1"),
    ],
)
def test_a_wrong_baseline_is_answered_in_one_line(
    arguments: list[str], told: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in refused(capsys, "baseline", *arguments)
    assert not list(tmp_path.iterdir())


def test_options_are_told(capsys: Captured) -> None:
    assert cli.main(["baseline", "--help"]) == 0
    assert "--timesteps" in capsys.readouterr().out
    assert cli.main(["baseline", "ppo", "point-navigation", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--n-steps" in said
    assert "--tasks.action-unit" in said


def test_evaluations_are_json(baseline: Path) -> None:
    assert json.loads((baseline / runs.EVALUATION).read_text())["metrics"]["return/step_0"]["low"] < 0


class Reached(gymnasium.Env[Any, Any]):
    """Ends after three steps; succeeds in the second where the task's number is above one half."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, number: float = 0.0) -> None:
        self.number, self.time = float(number), 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        info = {"success": self.time == 2 and self.number > 0.5}
        return np.zeros(1, np.float32), 1.0, self.time == 3, False, info


def test_a_baseline_tells_success_as_other_commands_do() -> None:
    numbers = gymnasium.spaces.Dict(number=gymnasium.spaces.Box(0.0, 1.0, (), np.float32))
    family = GymnasiumFamily(Reached, numbers, apply="keyword", sampling=Sampling(episodes=2, horizon=5))
    tasks = tasks_with(family, {"number": [0.1, 0.9, 0.4, 0.6]})
    model = sb3.PPOBaseline(hidden=(4,)).build(sb3.TaskVecEnv(family, 1), 0, "cpu")
    assert sb3.scores(model, family, tasks) == {"return": [3.0] * 4, "success": [0.0, 1.0, 0.0, 1.0]}


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_a_baseline_whose_episodes_outlast_its_first_row_is_logged_and_drawn(
    algorithm: str, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "run"
    own = ["--n-steps", "16", "--batch-size", "16"] if algorithm == "ppo" else ["--learning-starts", "200"]
    sizes = ["--timesteps", "192", "--num-envs", "2", "--hidden", "4", "--tasks", "2", "--quiet", *own]
    horizon = ["--tasks.sampling.episodes", "1", "--tasks.sampling.horizon", "70"]
    assert cli.main(["baseline", algorithm, "point-navigation", *sizes, *horizon, "--out", str(out)]) == 0
    rows = logger.read_progress(out / "progress.csv")
    assert [bool(row["return/step_0"]) for row in rows] == ([False] * 4 + [True] * 2 if algorithm == "ppo" else [True])
    assert cli.main(["plot", str(out)]) == 0
    assert (out / "learning.png").exists()


def test_a_baseline_that_ends_before_any_episode_is_drawn_without_learning_curves(
    tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "run"
    sizes = [
        "--timesteps",
        "32",
        "--num-envs",
        "2",
        "--hidden",
        "4",
        "--tasks",
        "2",
        "--quiet",
        "--n-steps",
        "16",
        "--batch-size",
        "16",
    ]
    horizon = ["--tasks.sampling.episodes", "1", "--tasks.sampling.horizon", "70"]
    assert cli.main(["baseline", "ppo", "point-navigation", *sizes, *horizon, "--out", str(out)]) == 0
    assert cli.main(["plot", str(out)]) == 0
    assert "without a score so far, so not in learning.png: run" in capsys.readouterr().out
    assert sorted(path.name for path in out.glob("*.png")) == ["adaptation.png"]


def test_a_baseline_warns_of_environments_that_the_seed_does_not_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unseeded.py").write_text(
        "import random\nfrom gymnasium import spaces\nfrom gymnasium.envs.classic_control import PendulumEnv\n"
        "import metarl\n"
        "class Noisy(PendulumEnv):\n"
        "    def step(self, action):\n"
        "        observation, reward, *rest = super().step(action)\n"
        "        return observation, reward + random.random(), *rest\n"
        "family = metarl.GymnasiumFamily(Noisy, spaces.Dict(g=spaces.Box(5.0, 15.0, ())), 'attribute')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    asked = ["baseline", "ppo", "unseeded:family", *PPO_OPTIONS, *SMALL, "--tasks", "1", "--quiet"]
    with pytest.warns(UserWarning, match="GymnasiumFamily draw from Python's random, which the seed does not set"):
        assert cli.main(asked) == 0
