"""The contract of environments finds what is broken: each fault of one walker breaks one promise."""

import dataclasses
import re
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from metarl import testing
from metarl.control.gymnasium_family import GymnasiumFamily
from metarl.control.sampling import Sampling
from metarl.control.tasks import ControlTasks
from metarl.testing.samples import Points
from metarl.types import Spec


def found_in(family: Any) -> dict[str, tuple[str, str]]:
    """Return the verdict and the messages of each check of a family."""
    return {
        outcome.check: (outcome.verdict, "\n".join(outcome.messages)) for outcome in testing.family_outcomes(family)
    }


class Walkers(VectorEnv):
    """Walkers on a line, in lanes: they are paid minus their distance to a goal, and stop where they pass 2."""

    def __init__(self, num_envs: int, horizon: int, fault: str):
        mode = AutoresetMode.NEXT_STEP if fault == "resets by itself" else AutoresetMode.DISABLED
        self.metadata = {"autoreset_mode": mode}
        self.num_envs, self.horizon, self.fault = num_envs, horizon, fault
        bound = 0.1 if fault == "small space" else np.inf
        self.single_observation_space = spaces.Box(-bound, bound, (1,), np.float64)
        self.single_action_space = spaces.Box(-1.0, 1.0, (1,), np.float64)
        self.goal = np.zeros(num_envs)
        self.rng = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        given = dict(options or {})
        if self.fault == "falsy seed" and seed:
            self.rng = np.random.default_rng(seed)
        mask = given.pop("reset_mask", np.ones(self.num_envs, bool))
        if self.fault == "mask unread" or not hasattr(self, "position"):
            mask = np.ones(self.num_envs, bool)
            self.position, self.elapsed = np.zeros((2, self.num_envs))
            self.terminated, self.truncated = np.zeros((2, self.num_envs), bool)
        if "goal" in given and self.fault != "goal unread":
            self.goal = given["goal"].double().numpy()
        self.position[mask] = self.rng.normal() if self.fault == "falsy seed" else 0.0
        if not (self.fault == "old clock" and "reset_mask" in (options or {})):
            self.elapsed[mask] = 0
        if self.fault == "common clock":
            self.elapsed[:] = 0
        self.terminated[mask] = self.truncated[mask] = False
        return self.position[:, None].copy(), {}

    def step(self, actions: Any) -> Any:
        running = ~(self.terminated | self.truncated)
        moving = np.ones_like(running) if self.fault == "moves on" else running
        self.position = self.position + moving * actions[:, 0] / (self.num_envs if self.fault == "crowd" else 1)
        rewards = -np.abs(self.position - self.goal) * (1 if self.fault == "paid on" else running)
        self.elapsed = self.elapsed + running
        late = running & (self.elapsed >= self.horizon)
        self.terminated = self.terminated | (running & (self.position > 2)) | (late & (self.fault == "late is dead"))
        self.truncated = self.truncated | (late & (self.fault not in ("late is dead", "endless")))
        if self.fault == "wakes":
            self.truncated = late
        dtype = float if self.fault == "flags of floats" else bool
        return self.position[:, None].copy(), rewards, self.terminated.astype(dtype), self.truncated.astype(dtype), {}


class Walker(gymnasium.Env[Any, Any]):
    """One walker."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float64)

    def __init__(self, goal: float, pace: float = 1.0):
        self.goal, self.pace, self.position = goal, pace, 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.position = 0.0
        return np.array([self.position]), {}

    def step(self, action: Any) -> Any:
        self.position += self.pace * float(action[0])
        return np.array([self.position]), -abs(self.position - self.goal), self.position > 2, False, {}


@dataclasses.dataclass(frozen=True)
class Walks:
    fault: str = ""
    sampling: Sampling = dataclasses.field(default_factory=lambda: Sampling(episodes=2, horizon=7))
    spec = Spec((1,), 1, "continuous", 1)

    def sample(self, num_tasks: int, split: Any, generator: torch.Generator) -> ControlTasks:
        if num_tasks < 1:
            raise ValueError("at least one")
        goal = torch.rand(num_tasks, generator=generator)
        if self.fault == "few goals":
            goal = goal.round()
        return ControlTasks(self.spec, {"goal": goal}, goal.unsqueeze(-1), self.environment, self.sampling)

    def environment(self, num_envs: int, device: torch.device) -> Walkers:
        return Walkers(num_envs, self.sampling.horizon, self.fault)


class WithSingle(Walks):
    def single(self, parameters: Any, render_mode: str | None = None) -> Walker:
        return Walker(float(parameters["goal"]), 0.5 if self.fault == "slow" else 1.0)


class Spaced(Walks):
    parameter_space = spaces.Dict(goal=spaces.Box(0, 0.25))


def test_whole_environments_pass() -> None:
    kept = GymnasiumFamily(Walker, spaces.Dict(goal=spaces.Box(0.0, 1.0)), sampling=Sampling(episodes=2, horizon=7))
    for family in (WithSingle(), Points(discrete=False), Points(discrete=True), kept):
        verdicts = {check: verdict for check, (verdict, _) in found_in(family).items() if verdict != "ok"}
        assert verdicts.pop("parameters", "ok") == ("ok" if family is kept else "skipped")
        assert verdicts.pop("single", "skipped") == "skipped"
        assert verdicts == {"device": "skipped", "groups": "skipped"}


@pytest.mark.parametrize(
    ("fault", "check", "message"),
    [
        ("flags of floats", "environment", r"terminations: found torch.float64 \(3,\), expected torch.bool \(3,\)"),
        (
            "falsy seed",
            "resets",
            "two resets with the same seed give different observations: use the seed given to reset",
        ),
        ("small space", "space", r"an observation is outside Box\(-0.1, 0.1.* \(step 1, task 0: "),
        (
            "late is dead",
            "horizon",
            "every lane is terminated at the horizon, whatever the horizon: a time limit must truncate",
        ),
        ("paid on", "idling", "a lane that has ended still gets rewards"),
        ("moves on", "idling", "a lane that has ended still moves"),
        ("wakes", "idling", "a lane that was truncated is not truncated in a later step"),
        ("mask unread", "reset_mask", "resetting one lane by reset_mask changes the others"),
        ("old clock", "reset_mask", "a lane that was reset by reset_mask does not start again"),
        ("common clock", "reset_mask", "after one lane was reset by reset_mask, the others continue differently"),
        ("crowd", "lanes", "task 0 in a lane alone differs from its lane among 3 at step 1 of 9"),
        ("few goals", "splits", "some train and validation tasks are also test tasks"),
    ],
)
def test_broken_environments_are_found_by_one_check(fault: str, check: str, message: str) -> None:
    failed = {name: text for name, (verdict, text) in found_in(Walks(fault)).items() if verdict == "FAILED"}
    assert set(failed) == {check}
    assert re.search(message, failed[check])
    assert re.search(r"\(\S*test_environments.py:\d+, Walks\.\w+\)$", failed[check])


def test_environments_that_reset_themselves_are_found() -> None:
    found = found_in(Walks("resets by itself"))
    assert found["tasks"][0] == "ok"
    assert found["draws"][0] == "FAILED"
    assert "AutoresetMode.DISABLED" in found["draws"][1]


def test_a_single_environment_that_does_otherwise_is_found() -> None:
    found = found_in(WithSingle("slow"))
    assert [check for check, (verdict, _) in found.items() if verdict == "FAILED"] == ["single"]
    assert "task 0 in the single environment differs from its lane among 3 at step 1" in found["single"][1]
    assert found["single"][1].endswith("WithSingle.single)")


def test_what_is_no_fault_is_noted() -> None:
    found = found_in(Walks("goal unread"))
    assert found["independence"][0] == "note"
    assert "are they used, or are rewards just rare?" in found["independence"][1]
    found = found_in(Walks("endless"))
    assert found["horizon"] == (
        "note",
        "lanes are not truncated at the horizon, step 7; sampling stops there anyway",
    )


def test_families_may_say_that_their_splits_share_tasks() -> None:
    class Few(Walks):
        splits_share_tasks = True

    verdict, text = found_in(Few("few goals"))["splits"]
    assert verdict == "note"
    assert "splits_share_tasks is True" in text


def test_parameters_outside_their_space_are_found() -> None:
    verdict, text = found_in(Spaced())["descriptors"]
    assert verdict == "FAILED"
    assert "the task parameter goal is" in text


def test_descriptors_that_are_not_the_parameters_are_found() -> None:
    class Negated(Points):
        parameter_space = spaces.Dict(goal=spaces.Box(-1, 1, (1,)))

        def sample(self, *arguments: Any) -> ControlTasks:
            tasks = super().sample(*arguments)
            return dataclasses.replace(tasks, descriptors=-tasks.descriptors)

    found = found_in(Negated(discrete=False))
    assert [check for check, (verdict, _) in found.items() if verdict == "FAILED"] == ["descriptors"]
    assert "descriptors are not the task parameters, flattened" in found["descriptors"][1]
