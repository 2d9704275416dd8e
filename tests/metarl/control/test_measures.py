"""Numbers that environments put into their infos, averaged over steps and episodes."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

import metarl
from metarl.control import ControlTasks, GymnasiumFamily, Sampling, scripted
from metarl.environments import Tally
from metarl.environments.outcomes import joined_tallies
from metarl.types import Policy, Rollout, Spec, joined


class Telling(gymnasium.Env[Any, Any]):
    """Ends after ``length`` steps, and tells the number of the step, and others."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Box(-1, 1, (1,))
    length = 3.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {"at_reset": 1.0}

    def step(self, action: Any) -> Any:
        self.steps += 1
        info = {"step": self.steps, "half": np.float32(0.5), "odd": self.steps % 2 == 1, "name": "no number",
                "matrix": np.zeros(2), "success": True, "zero-d": np.array(2.0), "broken": float("nan")}  # fmt: skip
        if self.steps == 2:
            info["rare"] = 7.0
        return np.zeros(1, np.float32), 1.0, self.steps >= self.length, False, info


def family(workers: int = 0) -> GymnasiumFamily:
    options = {"workers": workers} if workers else {}
    lengths = spaces.Dict(length=spaces.Box(2.0, 4.0))
    return GymnasiumFamily(Telling, lengths, apply="attribute", sampling=Sampling(episodes=2, horizon=6), **options)


def still(spec: Spec) -> Policy:
    return scripted(spec, lambda observations: torch.zeros(*observations.shape[:2], 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_numbers_are_averaged_over_the_steps_of_each_episode(workers: int) -> None:
    tasks = metarl.control.tasks_with(family(workers), {"length": torch.tensor([2.0, 4.0])})
    for _ in range(2):  # lanes are used again
        rollout = tasks.rollout(still(tasks.spec), torch.Generator().manual_seed(0))
        measures = rollout.measures
        assert measures is not None
        assert sorted(measures) == ["half", "odd", "rare", "step", "zero-d"]
        assert measures["step"].tolist() == [[1.5, 1.5], [2.5, 2.5]]
        assert measures["odd"].tolist() == [[0.5, 0.5], [0.5, 0.5]]
        assert measures["rare"].tolist() == [[7.0, 7.0], [7.0, 7.0]]
        assert measures["zero-d"].tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_what_some_episode_has_not_told_is_left_out() -> None:
    tasks = metarl.control.tasks_with(family(), {"length": torch.tensor([2.0, 4.0])})
    short = ControlTasks(tasks.spec, tasks.parameters, tasks.descriptors, tasks.environment, Sampling(2, horizon=1))
    rollout = short.rollout(still(tasks.spec), torch.Generator().manual_seed(0))
    assert rollout.measures is not None
    assert "rare" not in rollout.measures


class TellingLanes(VectorEnv[Any, Any, Any]):
    """Lanes of somebody else: infos hold arrays, also of lanes that have ended."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs, self.metadata = num_envs, {"autoreset_mode": AutoresetMode.DISABLED}
        self.single_observation_space = self.single_action_space = spaces.Box(-1, 1, (1,))
        self.observation_space = self.action_space = spaces.Box(-1, 1, (num_envs, 1))
        self.steps = 0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.steps = 0
        return np.zeros((self.num_envs, 1), np.float32), {}

    def step(self, actions: Any) -> Any:
        self.steps += 1
        lanes = np.arange(self.num_envs)
        ended = self.steps > lanes  # lane i ends in step i + 1
        info = {"step": np.full(self.num_envs, self.steps), "some": lanes * 1.0, "_some": lanes % 2 == 0}
        zeros = np.zeros(self.num_envs)
        return zeros[:, None].astype(np.float32), zeros, ended, np.zeros(self.num_envs, bool), info


def test_arrays_in_infos_of_other_lanes_count_until_a_lane_ends() -> None:
    spec, none = Spec((1,), 1, "continuous"), torch.zeros(2, 0)
    tasks = ControlTasks(spec, {}, none, lambda number, device: TellingLanes(number), Sampling(2, horizon=9))
    rollout = tasks.rollout(still(spec), torch.Generator().manual_seed(0))
    assert rollout.measures is not None
    assert rollout.measures["step"].tolist() == [[1.0, 1.5], [2.0, 2.5]]
    assert "some" not in rollout.measures


def test_tallies_of_workers_are_joined() -> None:
    one, other = Tally(2), Tally(1)
    one.add(0, {"a": 1, "b": 2})
    one.add(0, {"a": 3})
    other.add(0, {"a": 5.0})
    told = joined_tallies([one.told, other.told], [2, 1])
    assert [values.tolist() for values in told["a"]] == [[4, 0, 5], [2, 0, 1]]
    assert [values.tolist() for values in told["b"]] == [[2, 0, 0], [1, 0, 0]]
    one.restart(0)
    assert one.told["a"][1].tolist() == [0, 0]


def test_rows_and_evaluations_have_them_under_their_own_names() -> None:
    settings = metarl.Settings(iterations=2, meta_batch_size=2)
    result = metarl.train(metarl.MAML(), family(), settings=settings, out=None)
    row = result.rows[-1]
    assert row["info/half/step_0"] == row["info/half/step_1"] == 0.5
    assert row["success/step_1"] == 1.0
    assert not any(name.startswith("info/success") for name in row)
    found = metarl.evaluate(result.learner, result.params, family(), tasks=3, steps=1)
    lengths = found.tasks.parameters["length"].flatten()
    steps = torch.tensor(found.metrics["info/step/step_1"]["per_task"])
    torch.testing.assert_close(steps, (lengths.ceil() + 1) / 2)
    assert "info/" not in metarl.evaluation.table(found.metrics)


def test_joined_rollouts_have_no_measures() -> None:
    tasks = family().sample(2, "train", torch.Generator().manual_seed(0))
    rollout: Rollout = tasks.rollout(still(tasks.spec), torch.Generator().manual_seed(0))
    assert rollout.measures is not None
    assert joined([rollout, rollout]).measures is None
    assert rollout.select([1]).measures is not None
