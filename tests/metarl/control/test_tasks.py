"""Collecting episodes, from vector environments written here whose every number is known beforehand."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from support.synthetic import collected
from torch import Tensor

from metarl.advantages import Advantages
from metarl.control.gymnasium_family import GymnasiumFamily
from metarl.control.rollouts import RolloutError
from metarl.control.sampling import Sampling
from metarl.control.tasks import ControlTasks, check_environment
from metarl.environments.lanes import LaneError
from metarl.testing.batches import tensors
from metarl.types import Learner, Rollout, Spec, policy_of
from metarl_envs.bandit import Bandit

CONTINUOUS = Spec((3,), 1, "continuous")
DISCRETE = Spec((3,), 2, "discrete")
SPECS = pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=lambda spec: spec.kind)
DEVICES = pytest.mark.parametrize("device", [None, "cpu"], ids=["numpy", "torch"])
Told = dict[str, Any]

pytestmark = pytest.mark.usefixtures("float64")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Track(VectorEnv):
    """Observes (the task's number, steps since the reset, the last action) and pays 10 * number + steps.

    Lanes terminate after ``length`` steps and are cut after ``limit``; ``fault(step, told)`` spoils what is told.
    """

    def __init__(self, num_envs: int, device: str | None = None, fault: Callable[[int, Told], None] | None = None):
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.num_envs, self.device, self.fault = num_envs, device, fault
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,))
        self.single_action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
        self.seeds: list[int | None] = []
        self.threads: list[int] = []
        self.actions: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.seeds.append(seed)
        given = {name: np.asarray(value, dtype=float) for name, value in (options or {}).items()}
        assert set(given) <= {"number", "length", "limit"}
        for name, default in (("number", 0.0), ("length", np.inf), ("limit", np.inf)):
            setattr(self, name, given.get(name, np.full(self.num_envs, default)))
            assert getattr(self, name).shape == (self.num_envs,)
        self.elapsed, self.last, self.calls = np.zeros(self.num_envs), np.zeros(self.num_envs), 0
        return self._told({"observations": self._observations()})["observations"], {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        assert isinstance(actions, Tensor if self.device else np.ndarray)
        self.threads.append(torch.get_num_threads())
        self.actions.append(np.asarray(actions))
        running = (self.elapsed < self.length) & (self.elapsed < self.limit)
        self.calls += 1
        self.elapsed = self.elapsed + running
        self.last = np.where(running, np.asarray(actions).reshape(self.num_envs), self.last)
        told = self._told(
            {
                "observations": self._observations(),
                "rewards": np.where(running, 10 * self.number + self.elapsed, 0),
                "terminations": self.elapsed >= self.length,
                "truncations": self.elapsed >= self.limit,
            }
        )
        return told["observations"], told["rewards"], told["terminations"], told["truncations"], {}

    def _observations(self) -> np.ndarray:
        return np.stack([self.number, self.elapsed, self.last], axis=1).astype(np.float32)

    def _told(self, told: Told) -> Told:
        if self.fault:
            self.fault(self.calls, told)
        return {name: torch.as_tensor(value) for name, value in told.items()} if self.device else told


def policy(spec: Spec, outputs: Callable[[Tensor], Tensor] | None = None) -> Learner:
    """A learner that can only act: by default with a distribution that depends on all that is observed."""

    def predict(state: int, observations: Tensor) -> tuple[Tensor, int]:
        assert not torch.is_grad_enabled()
        weights = torch.linspace(-0.3, 0.4, 3 * spec.model_outputs).reshape(3, spec.model_outputs)
        return (outputs(observations) if outputs else observations @ weights), state + 1

    def unasked(*arguments: Any) -> Any:
        raise AssertionError("only actions were asked for")

    return Learner(spec, 1, unasked, unasked, unasked, predict, unasked)


def track_tasks(
    make: Callable[[int], VectorEnv] = Track,
    sampling: Sampling | None = None,
    spec: Spec = CONTINUOUS,
    **parameters: list[float],
) -> ControlTasks:
    rows = {name: torch.tensor(values) for name, values in ({"number": [1.0, 2.0]} | parameters).items()}
    descriptors = torch.zeros(len(rows["number"]), 0)
    return ControlTasks(spec, rows, descriptors, lambda lanes, device: make(lanes), sampling or Sampling(2, 3))


@DEVICES
@SPECS
def test_every_lane_lives_its_own_task(spec: Spec, device: str | None) -> None:
    env = Track(6, device)
    parameters = {"number": torch.tensor([1.0, 2.0, 3.0]).repeat_interleave(2)}
    found = collected(env, policy(spec), 0, 3, 4, generator(), parameters)
    assert found.observations.shape == (3, 2, 4, 3)
    assert found.rewards.shape == found.mask.shape == found.log_probs.shape == (3, 2, 4)
    assert found.actions.shape == ((3, 2, 4) if spec.kind == "discrete" else (3, 2, 4, 1))
    assert found.observations.dtype == found.rewards.dtype == found.mask.dtype == torch.float64

    numbers = torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)
    assert torch.equal(found.observations[..., 0], numbers.expand(3, 2, 4))
    assert torch.equal(found.observations[..., 1], torch.arange(4.0).expand(3, 2, 4))
    torch.testing.assert_close(found.rewards, (10 * numbers + torch.arange(1.0, 5.0)).expand(3, 2, 4))
    assert (found.mask == 1).all()
    assert (found.truncated == 0).all()
    assert torch.equal(found.last_observations[..., 1], torch.full((3, 2), 4.0))
    # What a lane observes is the action recorded for it, which its environment was given.
    acted = found.actions.reshape(3, 2, 4).double()
    following = torch.cat([found.observations[:, :, 1:, 2], found.last_observations[:, :, None, 2]], dim=2)
    torch.testing.assert_close(following, acted.float().double())
    assert np.array_equal(np.stack(env.actions, 1).reshape(6, 4), acted.reshape(6, 4).numpy())
    assert len(acted.unique()) > 1

    outputs, _ = torch.no_grad()(policy(spec).predict)(0, found.observations)
    assert torch.equal(found.log_probs, spec.distribution.log_prob(outputs, found.actions))
    assert not found.log_probs.requires_grad


def test_a_policy_with_memory_is_threaded_through() -> None:
    seen = []

    def predict(state: Tensor, observations: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(state.clone())
        return torch.zeros(1, 2, 2), state + observations[..., 1]

    collected(Track(2), policy(CONTINUOUS)._replace(predict=predict), torch.zeros(1, 2), 1, 4, generator())
    assert [state[0, 0].item() for state in seen] == [0, 0, 1, 3]


@DEVICES
def test_episodes_end_where_their_environments_say_so(device: str | None) -> None:
    limits = {
        "length": torch.tensor([2.0, 1.0, 9.0, 4.0, 2.0, 9.0]),
        "limit": torch.tensor([9.0, 9.0, 3.0, 9.0, 2.0, 4.0]),
    }
    found = collected(Track(6, device), policy(CONTINUOUS), 0, 3, 4, generator(), limits)
    assert found.mask.flatten(0, 1).tolist() == [
        [1, 1, 0, 0],
        [1, 0, 0, 0],
        [1, 1, 1, 0],
        [1, 1, 1, 1],
        [1, 1, 0, 0],
        [1, 1, 1, 1],
    ]
    assert found.rewards.flatten(0, 1).tolist() == [
        [1, 2, 0, 0],
        [1, 0, 0, 0],
        [1, 2, 3, 0],
        [1, 2, 3, 4],
        [1, 2, 0, 0],
        [1, 2, 3, 4],
    ]
    # Only the third was cut short: the fifth terminated as well, and the last one was cut at the horizon.
    assert found.truncated.any(2).flatten().tolist() == [False, False, True, False, False, True]
    assert found.terminated.any(2).flatten().tolist() == [True, True, False, True, True, False]
    assert found.truncated[1, 0].tolist() == [False, False, True, False]
    assert found.last_observations[..., 1].flatten().tolist() == [2, 1, 3, 4, 2, 4]


def test_rewards_after_the_end_do_not_count() -> None:
    def pay(step: int, told: Told) -> None:
        if "rewards" in told:
            told["rewards"] += 100
            if step > 1:
                told["terminations"][:] = False  # an environment that forgets that it ended

    found = collected(Track(1, fault=pay), policy(CONTINUOUS), 0, 1, 3, generator(), {"length": torch.ones(1)})
    assert found.rewards.flatten().tolist() == [101, 0, 0]
    assert found.mask.flatten().tolist() == [1, 0, 0]


def test_one_thread_while_a_simulator_runs_and_all_where_none_does() -> None:
    torch.set_num_threads(2)
    env = Track(2)
    collected(env, policy(CONTINUOUS), 0, 1, 3, generator())
    assert env.threads == [1, 1, 1]
    assert torch.get_num_threads() == 2
    with pytest.raises(RolloutError):
        collected(Track(2, fault=broken(1)), policy(CONTINUOUS), 0, 1, 3, generator())
    assert torch.get_num_threads() == 2
    threads = list[int]()

    def watched(observations: Tensor) -> Tensor:
        threads.append(torch.get_num_threads())
        return torch.zeros(*observations.shape[:2], tasks.spec.output_size)

    tasks = Bandit().sample(1, "test", generator())
    collected(tasks.environment(2, torch.device("cpu")), policy(tasks.spec, watched), 0, 1, 3, generator())
    assert threads == [2, 2, 2]


@SPECS
def test_equal_generators_give_equal_episodes_and_nothing_else_is_drawn_from(spec: Spec) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    envs = [Track(4), Track(4), Track(4)]
    seeded = zip(envs, (1, 1, 2), strict=True)
    first, again, other = (collected(env, policy(spec), 0, 2, 5, generator(seed)) for env, seed in seeded)
    assert all(torch.equal(*pair) for pair in zip(tensors(first), tensors(again), strict=True))
    assert not torch.equal(first.actions, other.actions)
    assert envs[0].seeds == envs[1].seeds != envs[2].seeds
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_arrays_that_the_environment_uses_again_are_copied() -> None:
    class Frugal(Track):
        """Writes everything into arrays that it made once, and lends them out read-only."""

        def _told(self, told: Told) -> Told:
            for name, value in super()._told(told).items():
                own = self.__dict__.setdefault(f"own_{name}", np.zeros(value.shape, np.asarray(value).dtype))
                own[:] = value
                told[name] = torch.from_numpy(own) if self.device else own.view()
                if not self.device:
                    told[name].flags.writeable = False
            return told

        def _observations(self) -> np.ndarray:
            return super()._observations().astype(np.float64)

    for device in (None, "cpu"):
        found = collected(Frugal(2, device), policy(CONTINUOUS), 0, 1, 4, generator(), {"number": torch.ones(2)})
        assert found.observations[0, 0, :, 1].tolist() == [0, 1, 2, 3]
        assert found.rewards[0, 0].tolist() == [11, 12, 13, 14]


def test_tasks_can_be_compared() -> None:
    """As tensors they raised: the truth value of several numbers is ambiguous."""
    one, other = (Bandit().sample(2, "test", generator()) for _ in range(2))
    assert one == one
    assert one != other
    assert len({one, other, one}) == 2


class TestDraw:
    def test_a_rollout(self) -> None:
        tasks = track_tasks(sampling=Sampling(2, 3), length=[2.0, 9.0])
        rollout = tasks.rollout(policy_of(policy(CONTINUOUS), 0), generator())
        assert isinstance(rollout, Rollout)
        assert rollout.rewards.tolist() == [[[11, 12, 0]] * 2, [[21, 22, 23]] * 2]
        assert rollout.terminated.tolist() == [[[False, True, False]] * 2, [[False] * 3] * 2]
        assert not rollout.truncated.any()
        assert rollout.last_observations[..., :2].tolist() == [[[1, 2]] * 2, [[2, 3]] * 2]
        numbers = [values for values in vars(rollout).values() if values is not None and values.dtype != torch.bool]
        assert all(values.dtype == torch.float64 for values in numbers)
        assert rollout.success is None
        assert rollout.advantages is None

    def test_every_draw_starts_fresh_episodes_in_the_same_environment(self) -> None:
        made: list[Track] = []

        def make(lanes: int) -> Track:
            made.append(Track(lanes))
            return made[-1]

        tasks = track_tasks(make)
        assert not made
        first, second = (tasks.rollout(policy_of(policy(CONTINUOUS), 0), generator(seed)) for seed in (1, 2))
        again = tasks.rollout(policy_of(policy(CONTINUOUS), 0), generator(1))
        assert [env.num_envs for env in made] == [4]
        assert second.observations[:, :, 0, 1].tolist() == [[0, 0], [0, 0]]
        assert not torch.equal(first.actions, second.actions)
        assert made[0].seeds[0] != made[0].seeds[1]
        assert all(torch.equal(*pair) for pair in zip(tensors(first), tensors(again), strict=True))

    def test_a_changed_copy_makes_its_own_environment(self) -> None:
        tasks = track_tasks()
        tasks.rollout(policy_of(policy(CONTINUOUS), 0), generator())
        more = replace(tasks, sampling=Sampling(5, 3))
        assert more.rollout(policy_of(policy(CONTINUOUS), 0), generator()).rewards.shape == (2, 5, 3)

    def test_environments_that_would_spoil_the_episodes_are_refused(self) -> None:
        tasks = track_tasks(lambda lanes: Track(lanes + 1))
        with pytest.raises(ValueError, match=r"5 lanes .* expected 4, one for each episode of each task"):
            tasks.rollout(policy_of(policy(CONTINUOUS), 0), generator())
        env = gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 4)
        with pytest.raises(ValueError, match=r"AutoresetMode.NEXT_STEP: expected .* AutoresetMode.DISABLED"):
            track_tasks(lambda lanes: env).rollout(policy_of(policy(CONTINUOUS), 0), generator())

    @pytest.mark.parametrize(
        "options",
        [{"episodes": 0}, {"horizon": 0}],
    )
    def test_samplings_without_sense_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(options))):
            Sampling(**options)


def broken(step: int, **spoilt: Callable[[Any], Any]) -> Callable[[int, Told], None]:
    """A fault that changes what is told at one step (0 is the reset), or raises."""

    def fault(now: int, told: Told) -> None:
        if now == step and not spoilt:
            raise KeyError("no key")
        for name, change in spoilt.items():
            if now == step and name in told:
                told[name] = change(told[name])

    return fault


def put(value: float, *lanes: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[list(lanes)] = value
        return array

    return change


FAULTS: dict[str, tuple[Callable[[int, Told], None], str]] = {
    "raises": (broken(2), r"an environment raised: step 2: KeyError: 'no key'"),
    "raises at reset": (broken(0), r"an environment raised: step 0: KeyError: 'no key'"),
    "reward nan": (
        broken(2, rewards=put(np.nan, 3)),
        r"rewards are not finite: task 1, lane 3 \(episode 1\), step 2 of Track",
    ),
    "reward infinite": (broken(3, rewards=put(-np.inf, 2, 3)), r"rewards .*: task 1, lane 2 \(episode 0\), step 3"),
    "observation nan": (broken(1, observations=put(np.nan, 2)), r"observations .*: task 1, lane 2 .*, step 1"),
    "first observation": (broken(0, observations=put(np.nan, 1)), r"observations .*: task 0, lane 1 .*, step 0"),
    "last observation": (broken(4, observations=put(np.nan, 1)), r"observations .*: task 0, lane 1 .*, step 4"),
    "both": (broken(2, observations=put(np.nan, 3), rewards=put(np.nan, 1)), r"task \d, lane [13] .*, step 2"),
    "shape": (broken(2, observations=lambda a: a[:, :2]), r"observations at step 2 have shape \(4, 2\) where \(4, 3\)"),
    "fewer lanes": (
        broken(2, observations=lambda a: a[:2]),
        r"observations at step 2 have shape \(2, 3\) where \(4, 3\)",
    ),
    "reset shape": (
        broken(0, observations=lambda a: a[:2]),
        r"observations at step 0 have shape \(2, 3\) where \(4, 3\)",
    ),
    "scalar": (broken(1, observations=lambda a: 3.0), r"observations at step 1 have shape \(\) where \(4, 3\)"),
    "column": (broken(1, rewards=lambda a: a[:, None]), r"rewards at step 1 have shape \(4, 1\) where \(4,\)"),
    "one flag": (broken(1, terminations=lambda a: False), r"terminations at step 1 have shape \(\) where \(4,\)"),
    "flags": (broken(3, truncations=lambda a: a[:3]), r"truncations at step 3 have shape \(3,\) where \(4,\)"),
    "text": (broken(1, rewards=lambda a: ["much"] * 4), "rewards at step 1 are not an array of numbers but list"),
    "dict": (broken(1, observations=lambda a: {"x": a}), "observations at step 1 are not an array of numbers but dict"),
    "ragged": (
        broken(1, observations=lambda a: [[1], [1, 2]]),
        "observations at step 1 are not an array of numbers but list",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_environments_are_named(fault: str) -> None:
    spoil, message = FAULTS[fault]
    with pytest.raises(RolloutError, match=message) as caught:
        collected(Track(4, fault=spoil), policy(CONTINUOUS), 0, 2, 4, generator())
    if "raises" in fault:
        assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("name", "number", "told"),
    [
        ("observations", 1e39, r"observations at step 2 hold 1e\+39, .* does not hold: task 1, lane 3 \(episode 1\)"),
        ("rewards", -1e300, r"rewards at step 2 hold -1e\+300, .* does not hold: task 1, lane 3 \(episode 1\)"),
    ],
)
def test_numbers_beyond_the_dtype_are_told_as_such(name: str, number: float, told: str) -> None:
    spoil = broken(2, **{name: lambda values: put(number, 3)(values.astype(float))})
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with pytest.raises(RolloutError, match=told):
            collected(Track(4, fault=spoil), policy(CONTINUOUS), 0, 2, 4, generator())
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("kind", [float, int])
def test_observations_that_become_equal_are_told_once(kind: type) -> None:
    """Seconds since 1970, which count up by one."""

    def spoil(step: int, told: Told) -> None:
        told["observations"] = np.full((4, 3), 1_700_000_000 + step, dtype=kind)

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        env = Track(4, fault=spoil)
        with pytest.warns(
            UserWarning, match=r"Track: the observations 1700000000(\.0)? and 1700000001.* subtract"
        ) as told:
            collected(env, policy(CONTINUOUS, lambda seen: 0 * seen[..., :2]), 0, 2, 4, generator())
        assert len(told) == 1
        env.calls = 0
        collected(env, policy(CONTINUOUS, lambda seen: 0 * seen[..., :2]), 0, 2, 4, generator())
    finally:
        torch.set_default_dtype(before)


def test_the_first_fault_is_the_one_that_is_named() -> None:
    def spoil(step: int, told: Told) -> None:
        broken(2, rewards=put(np.nan, 3))(step, told)
        broken(3, observations=put(np.nan, 0))(step, told)
        broken(4, rewards=put(np.nan, 0))(step, told)

    with pytest.raises(RolloutError, match=r"rewards are not finite: task 1, lane 3 \(episode 1\), step 2"):
        collected(Track(4, fault=spoil), policy(CONTINUOUS), 0, 2, 4, generator())


@pytest.mark.parametrize(
    ("lanes", "named"),
    [
        ([2], r"task 1, lane 2 \(episode 0\), step 2"),
        ([1, 3], r"task 0, lane 1 \(episode 1\), task 1, lane 3 \(episode 1\), step 2"),
        ([0, 1, 2, 3], r"task 0, lane 0 .*, task 1, lane 2 \(episode 0\), \.\.\., step 2"),
    ],
)
def test_lanes_that_an_exception_names_are_told_with_their_tasks(lanes: list[int], named: str) -> None:
    def fault(step: int, told: Told) -> None:
        if step == 2:
            raise LaneError("out of fuel", lanes)

    with pytest.raises(RolloutError, match=f"an environment raised: {named}: LaneError: out of fuel") as caught:
        collected(Track(4, fault=fault), policy(CONTINUOUS), 0, 2, 4, generator())
    assert isinstance(caught.value.__cause__, LaneError)


class Fragile(gymnasium.Env):
    """Breaks at its second step, where its task says so."""

    observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,))

    def __init__(self, broken: int):
        self.broken, self.count = broken, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.count = 0
        return np.zeros(1), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        if self.broken and self.count == 2:
            raise OverflowError("too much")
        return np.zeros(1), 0.0, False, False, {}


def test_gymnasium_environments_are_told_by_task_lane_and_step() -> None:
    family = GymnasiumFamily(Fragile, spaces.Dict(broken=spaces.Discrete(2)), sampling=Sampling(2, 4))
    tasks = replace(family.sample(3, "train", generator()), parameters={"broken": torch.tensor([0, 1, 0])})
    idle = policy(family.spec, lambda seen: torch.zeros(*seen.shape[:-1], 2))
    message = r"task 1, lane 2 \(episode 0\), step 2: LaneError: lane 2, step 2: OverflowError: too much"
    with pytest.raises(RolloutError, match=message) as caught:
        tasks.rollout(policy_of(idle, 0), generator())
    assert isinstance(caught.value.__cause__.__cause__, OverflowError)


@pytest.mark.parametrize("strict", [False, True])
def test_actions_of_nan_are_the_policys_fault(strict: bool) -> None:
    def outputs(observations: Tensor) -> Tensor:
        wrong = (observations[..., :1] == 2) & (observations[..., 1:2] == 1)  # task 1, at its second step
        return torch.where(wrong, torch.nan, 0.0).expand(*observations.shape[:-1], 2)

    class Strict(Track):
        def step(self, actions: Any) -> Any:
            if strict and not np.isfinite(actions).all():
                raise ValueError("cannot act")
            return super().step(actions)

    with pytest.raises(RolloutError, match=r"actions are not finite: task 1, lane 2 \(episode 0\).*, step 2"):
        track_tasks(Strict).rollout(policy_of(policy(CONTINUOUS, outputs), 0), generator())


def test_a_bug_of_the_policy_is_not_blamed_on_the_environment() -> None:
    def outputs(observations: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        collected(Track(2), policy(CONTINUOUS, outputs), 0, 1, 3, generator())


def test_gymnasiums_own_lanes_serve() -> None:
    envs = [lambda: gymnasium.make("Pendulum-v1", max_episode_steps=5)] * 4
    env = gymnasium.vector.SyncVectorEnv(envs, autoreset_mode=AutoresetMode.DISABLED, copy=False)
    idle = policy(Spec((3,), 1, "continuous"), lambda seen: torch.zeros(*seen.shape[:-1], 2))
    found = collected(env, idle, 0, 2, 5, generator())
    assert len(found.observations[..., 2].unique()) == 20
    assert Advantages().of_episodes(None, [found])[0].advantages.isfinite().all()


def test_environments_and_specs_that_disagree_are_refused() -> None:
    for spec in (
        Spec((4,), 1, "continuous"),
        Spec((3,), 2, "continuous"),
        Spec((3,), 1, "discrete"),
    ):
        with pytest.raises(ValueError, match=r"observes Box.* and acts in Box.*, which is not what Spec"):
            check_environment(Track(4), 4, spec)
    check_environment(Track(4), 4, Spec((3,), 1, "continuous"))
