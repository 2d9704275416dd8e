import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from metarl.control.gymnasium_family import GymnasiumFamily
from metarl.control.rollouts import RolloutError
from metarl.control.sampling import Sampling
from metarl.control.tasks import ControlTasks, tasks_with
from metarl.environments.lanes import lane_seeds
from metarl.types import Learner, Spec, policy_of

CPU = torch.device("cpu")
GRAVITY = spaces.Dict(g=spaces.Box(5.0, 15.0, ()))
MASS = spaces.Dict(g=spaces.Box(5.0, 15.0, ()), m=spaces.Box(0.5, 2.0, ()))


class Counter(gymnasium.Env):
    """Counts its steps and terminates after ``length``; a fault, by name, comes with step 2."""

    def __init__(self, length: int = 3, fault: str = "", wide: int = 1):
        self.observation_space, self.action_space = spaces.Box(0, 100, (wide,)), spaces.Discrete(2, start=1)
        self.length, self.fault, self.count, self.bonus = length, fault, 0, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count, self.start = 0, (options or {}).get("start", 0.0)
        return np.full(self.observation_space.shape, self.start), {}

    def step(self, action: int) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        assert action in (1, 2), "actions arrive as this space numbers them"
        self.count += 1
        observation: Any = np.full(self.observation_space.shape, self.start + self.count)
        reward: Any = action + self.bonus
        if self.count == 2 and self.fault:
            if self.fault == "raise":
                raise KeyError("no key")
            observation, reward = {
                "shape": (np.zeros(2), 0.0),
                "observation": (np.array([np.nan]), 0.0),
                "reward": (observation, np.nan),
                "text": (observation, "3"),
                "none": (observation, None),
            }[self.fault]
        return observation, reward, self.count >= self.length, False, {}


def counters(**options: Any) -> GymnasiumFamily:
    defaults: dict[str, Any] = {"env": Counter, "parameters": spaces.Dict(length=spaces.Discrete(9, start=2))}
    return GymnasiumFamily(**{**defaults, **options})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("apply", ["keyword", "attribute"])
def test_pendulums_under_many_gravities(apply: str) -> None:
    family = GymnasiumFamily("Pendulum-v1", GRAVITY, apply=apply, sampling=Sampling(horizon=5))
    assert family.spec == Spec(input_shape=(3,), output_size=1, kind="continuous", descriptor_size=1)
    lanes, gravities = family.environment(3, CPU), [5.0, 10.0, 15.0]
    alone = [gymnasium.make("Pendulum-v1", g=g) for g in gravities]
    observations, _ = lanes.reset(seed=7, options={"g": torch.tensor(gravities)})
    for lane, (env, seed) in enumerate(zip(alone, lane_seeds(7, 3), strict=True)):
        np.testing.assert_array_equal(observations[lane], env.reset(seed=seed)[0])
    for _ in range(4):
        observations, rewards, terminations, truncations, _ = lanes.step(np.array([[0.5], [-1.0], [3.0]]))
        # Torques lie in [-2, 2] Nm: half of it, the lower end, and clipped at the upper end.
        for lane, (env, torque) in enumerate(zip(alone, [1.0, -2.0, 2.0], strict=True)):
            observation, reward, _, _, _ = env.step(np.array([torque], dtype=np.float32))
            np.testing.assert_array_equal(observations[lane], observation)
            assert rewards[lane] == np.float32(reward)
        assert not (terminations | truncations).any()
    assert lanes.step(np.zeros((3, 1)))[3].all()


def test_a_mass_that_no_constructor_takes() -> None:
    def dynamics(env: gymnasium.Env, g: float, m: float) -> None:
        env.unwrapped.g, env.unwrapped.m = g, m

    told = []
    for apply in ("attribute", dynamics):
        lanes = GymnasiumFamily("Pendulum-v1", MASS, apply=apply).environment(2, CPU)
        start, _ = lanes.reset(seed=0, options={"g": np.array([10.0, 10.0]), "m": np.array([1.0, 2.0])})
        told.append(lanes.step(np.array([[1.0], [1.0]]))[0])
        # From the equation of motion: gravity and length as usual, a torque of 2 Nm, 0.05 s.
        sine, speed = start[:, 1].astype(float), start[:, 2].astype(float)
        expected = speed + (3 * 10 / 2 * sine + 3 / np.array([1.0, 2.0]) * 2) * 0.05
        np.testing.assert_allclose(told[-1][:, 2], expected, rtol=1e-5)
    np.testing.assert_array_equal(*told)
    with pytest.raises(ValueError, match=r"cannot make Pendulum-v1 with \{'g': 10.0, 'm': 1.25\}, .*argument 'm'"):
        GymnasiumFamily("Pendulum-v1", MASS, apply="keyword").spec  # noqa: B018


def test_reset_options() -> None:
    family = counters(apply="options", parameters=spaces.Dict(start=spaces.Box(0.0, 10.0, ())))
    lanes = family.environment(2, CPU)
    assert lanes.reset()[0].tolist() == [[5.0], [5.0]]
    assert lanes.reset(options={"start": [2.0, 4.0]})[0].tolist() == [[2.0], [4.0]]
    assert lanes.reset()[0].tolist() == [[2.0], [4.0]]


def test_finished_lanes_idle_and_the_horizon_truncates() -> None:
    lanes = counters(sampling=Sampling(horizon=4)).environment(3, CPU)
    assert lanes.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    lanes.reset(seed=0, options={"length": np.array([2, 4, 9])})
    # The policy's actions 0 and 1 are the environment's 1 and 2.
    told = [lanes.step(np.array([0, 1, 1])) for _ in range(6)]
    observations, rewards, terminations, truncations, infos = zip(*told, strict=True)
    assert [rows[:, 0].tolist() for rows in observations] == [
        [1, 1, 1], [2, 2, 2], [2, 3, 3], [2, 4, 4], [2, 4, 4], [2, 4, 4]]  # fmt: skip
    assert [row.tolist() for row in rewards] == [[1, 2, 2], [1, 2, 2], [0, 2, 2], [0, 2, 2], [0, 0, 0], [0, 0, 0]]
    assert terminations[0].tolist() == [False] * 3
    assert [row.tolist() for row in terminations[1:]] == [[True, False, False]] * 2 + [[True, True, False]] * 3
    assert [row.tolist() for row in truncations] == [[False] * 3] * 3 + [[False, True, True]] * 3
    assert infos == ({},) * 6
    # Finished environments were not stepped.
    assert [env.unwrapped.count for env in lanes._envs.values()] == [2, 4, 4]


def test_an_environments_own_time_limit_is_a_truncation() -> None:
    family = GymnasiumFamily(
        lambda length: gymnasium.wrappers.TimeLimit(Counter(length), 3), spaces.Dict(length=spaces.Discrete(9, start=2))
    )
    lanes = family.environment(2, CPU)
    lanes.reset(options={"length": [2, 9]})
    for _ in range(3):
        _, _, terminations, truncations, _ = lanes.step(np.array([0, 0]))
    assert (terminations.tolist(), truncations.tolist()) == ([True, False], [False, True])


def test_reset_mask() -> None:
    lanes = counters().environment(3, CPU)
    lanes.reset(options={"length": [2, 3, 9]})
    for _ in range(2):
        lanes.step(np.zeros(3))
    observations, _ = lanes.reset(options={"reset_mask": [True, False, False], "length": [4, 4, 4]})
    assert observations.tolist() == [[0], [2], [2]]
    observations, _, terminations, _, _ = lanes.step(np.zeros(3))
    assert observations.tolist() == [[1], [3], [3]]
    # The second lane goes on with its old task.
    assert terminations.tolist() == [False, True, False]


def test_discrete_observations_are_one_hot() -> None:
    def frozen_lake(is_slippery: int) -> gymnasium.Env:
        return gymnasium.make("FrozenLake-v1", is_slippery=bool(is_slippery))

    family = GymnasiumFamily(frozen_lake, spaces.Dict(is_slippery=spaces.Discrete(2)))
    assert family.spec == Spec(input_shape=(16,), output_size=4, kind="discrete", descriptor_size=1)
    lanes = family.environment(2, CPU)
    lanes.reset(seed=0, options={"is_slippery": [0, 0]})
    observations, _, _, _, _ = lanes.step(torch.tensor([1, 2]))
    assert observations.argmax(1).tolist() == [4, 1]
    assert observations.sum() == 2


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("raise", "KeyError: 'no key'"),
        ("shape", r"ValueError: an observation has shape \(2,\) where \(1,\) was expected"),
        ("observation", "ValueError: an observation holds numbers that are not finite"),
        ("reward", "ValueError: the reward is nan, not a finite number"),
        ("text", "ValueError: the reward is '3', str: expected one finite number"),
        ("none", "ValueError: the reward is None, NoneType: expected one finite number"),
    ],
)
def test_a_broken_environment_is_named(fault: str, cause: str) -> None:
    faults = ["", fault]
    family = counters(
        env=lambda fault: Counter(9, faults[fault]), parameters=spaces.Dict(fault=spaces.Discrete(2)), apply="keyword"
    )
    lanes = family.environment(3, CPU)
    lanes.reset(options={"fault": [0, 0, 1]})
    lanes.step(np.zeros(3))
    with pytest.raises(RuntimeError, match=f"lane 2, step 2: {cause}") as caught:
        lanes.step(np.zeros(3))
    assert type(caught.value.__cause__).__name__ == cause.partition(":")[0]
    # The lanes serve the next task.
    lanes.reset(options={"fault": [0, 0, 0]})
    assert lanes.step(np.zeros(3))[0].tolist() == [[1], [1], [1]]


def test_spaces_that_depend_on_the_task_are_refused() -> None:
    lanes = counters(parameters=spaces.Dict(wide=spaces.Discrete(3, start=1))).environment(2, CPU)
    with pytest.raises(RuntimeError, match=r"lane 1, step 0: ValueError: the task \{'wide': 2\} asks for Spec"):
        lanes.reset(options={"wide": [1, 2]})
    lanes.reset(options={"wide": [1, 1]})


def test_environments_are_made_anew_only_where_they_must() -> None:
    made = []

    def make(**keywords: Any) -> gymnasium.Env:
        made.append(keywords)
        return Counter(**keywords)

    for apply, expected in (("keyword", 1 + 3 + 1), ("attribute", 1 + 3)):
        made.clear()
        family = counters(env=make, apply=apply)
        lanes = family.environment(3, CPU)
        lanes.reset(options={"length": [3, 4, 5]})
        lanes.reset(options={"length": [3, 4, 5]})
        lanes.reset(options={"length": [3, 6, 5]})
        assert len(made) == expected


def test_lanes_belong_to_who_asked_for_them() -> None:
    family = counters()
    mine, theirs = family.environment(1, CPU), family.environment(1, CPU)
    for lanes in (mine, theirs):
        lanes.reset(seed=0, options={"length": [9]})
    theirs.step(np.zeros(1))
    theirs.close()
    assert mine.step(np.zeros(1))[0].tolist() == [[1]]


def test_draws_borrow_lanes_that_no_other_draw_uses_meanwhile() -> None:
    family = counters(sampling=Sampling(episodes=1, horizon=3))
    some, others = family.sample(2, "train", generator()), family.sample(2, "train", generator(1))
    with some._lanes(2, CPU) as one, others._lanes(2, CPU) as other, some._lanes(2, CPU) as third:
        assert len({id(one), id(other), id(third)}) == 3
    with others._lanes(2, CPU) as again:
        assert again is one  # the one given back last
    # A copy has lanes of its own, and so has another default dtype.
    for copied in (copy.copy, copy.deepcopy, lambda it: replace(it), lambda it: pickle.loads(cloudpickle.dumps(it))):
        with copied(family)._pool.lent(2, CPU) as lanes:
            assert lanes is not again or copied is copy.copy


def test_float64_lanes_after_float32(float64: None) -> None:
    family = counters(sampling=Sampling(episodes=1, horizon=3))
    torch.set_default_dtype(torch.float32)
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        with family.sample(2, "train", generator())._lanes(2, CPU) as lanes:
            assert str(lanes.single_observation_space.dtype) == str(dtype).removeprefix("torch.")


def test_threads_of_one_family_draw_as_they_do_alone() -> None:
    family = GymnasiumFamily("Pendulum-v1", GRAVITY, apply="attribute", sampling=Sampling(episodes=2, horizon=20))
    idle = learner(family.spec, lambda seen: torch.zeros(*seen.shape[:-1], 2))

    def draw(seed: int) -> torch.Tensor:
        tasks = family.sample(3, "train", generator(seed))
        return torch.stack([tasks.rollout(policy_of(idle, None), generator(seed)).observations for _ in range(3)])

    alone = [draw(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        for one, other in zip(alone, threads.map(draw, range(4)), strict=True):
            assert torch.equal(one, other)


def test_tasks_fill_their_ranges_and_depend_on_the_seed_only() -> None:
    parameters = spaces.Dict(
        bonus=spaces.Box(np.array([0.0, -1.0]), np.array([1.0, 1.0]), dtype=np.float64),
        length=spaces.Discrete(3, start=4),
    )
    family = counters(parameters=parameters, apply="attribute")
    tasks = family.sample(1000, "train", generator())
    bonus, length = tasks.parameters["bonus"], tasks.parameters["length"]
    assert (bonus.shape, length.shape) == ((1000, 2), (1000,))
    assert length.unique().tolist() == [4, 5, 6]
    torch.testing.assert_close(bonus.amin(0), torch.tensor([0.0, -1.0]), atol=0.01, rtol=0)
    torch.testing.assert_close(bonus.amax(0), torch.tensor([1.0, 1.0]), atol=0.01, rtol=0)
    assert torch.equal(tasks.descriptors, torch.cat([bonus, length.float().unsqueeze(1)], dim=1))
    assert family.spec.descriptor_size == 3
    assert family.parameter_space == parameters
    assert torch.equal(family.sample(1000, "test", generator()).descriptors, tasks.descriptors)
    assert not torch.equal(family.sample(1000, "train", generator(1)).descriptors, tasks.descriptors)


@pytest.mark.filterwarnings("ignore:.*changes nothing in the environment")
def test_a_box_of_one_number_reaches_the_environment_as_a_float() -> None:
    seen = []
    family = counters(
        parameters=spaces.Dict(bonus=spaces.Box(0.0, 1.0), pair=spaces.Box(0.0, 1.0, (2,)), n=spaces.Discrete(2)),
        apply=lambda env, **values: seen.append(values),
    )
    assert family.spec.descriptor_size == 4
    assert (seen[0]["bonus"], seen[0]["pair"].tolist(), seen[0]["n"]) == (0.5, [0.5, 0.5], 0)
    assert [type(value) for value in seen[0].values()] == [float, np.ndarray, int]


def learner(spec: Spec, outputs: Callable[[torch.Tensor], torch.Tensor]) -> Learner:
    return Learner(spec, 1, *[lambda *_: None] * 3, lambda state, seen: (outputs(seen), state), None)


def test_draws() -> None:
    family = counters(sampling=Sampling(episodes=2, horizon=4), apply="attribute")
    tasks = family.sample(3, "train", generator())
    certain = learner(family.spec, lambda seen: torch.tensor([0.0, 100.0]).expand(*seen.shape[:-1], 2))
    rollout = tasks.rollout(policy_of(certain, None), generator())
    assert rollout.observations.shape == (3, 2, 4, 1)
    lengths = tasks.parameters["length"].clamp(max=4)
    assert rollout.rewards.sum(2).tolist() == [[2 * length] * 2 for length in lengths.tolist()]
    assert rollout.mask.sum(2).tolist() == [[length] * 2 for length in lengths.tolist()]


def test_a_broken_draw_names_lane_and_step() -> None:
    family = counters(env=lambda length: Counter(length, "raise"), sampling=Sampling(episodes=2, horizon=4))
    any_action = learner(family.spec, lambda seen: torch.zeros(*seen.shape[:-1], 2))
    with pytest.raises(RolloutError, match="lane 0, step 2: KeyError: 'no key'"):
        family.sample(3, "train", generator()).rollout(policy_of(any_action, None), generator())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"apply": "magic"}, "apply is 'magic': expected 'keyword', 'options', 'attribute' or a function"),
        ({"parameters": {"length": 3}}, "expected a gymnasium.spaces.Dict that is not empty"),
        ({"parameters": spaces.Dict()}, "expected a gymnasium.spaces.Dict that is not empty"),
        ({"parameters": spaces.Dict(x=spaces.Box(0, np.inf))}, "cannot sample 'x' from Box"),
        ({"parameters": spaces.Dict(x=spaces.Box(0, 3, dtype=np.int64))}, "cannot sample 'x' from Box"),
        ({"parameters": spaces.Dict(x=spaces.MultiBinary(3))}, r"cannot sample 'x' from MultiBinary\(3\)"),
    ],
)
def test_wrong_families_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        counters(**options)


def test_unserved_spaces_are_refused() -> None:
    def environment(observation_space: spaces.Space, action_space: spaces.Space) -> Callable[..., gymnasium.Env]:
        def make(length: int) -> gymnasium.Env:
            env = Counter(length)
            env.observation_space, env.action_space = observation_space, action_space
            return env

        return make

    box, one = spaces.Box(0, 1), spaces.Discrete(2)
    sequence = spaces.Sequence(box)
    for unread, told in (
        (
            sequence,
            r"observations of Sequence\(.*\) cannot be read: expected Box, Discrete, Mu",
        ),
        (spaces.Graph(box, None), r"observations of Graph\(.*\) cannot be read"),
        (
            spaces.Dict(a=box, b=spaces.Tuple([box, spaces.Text(3)])),
            r"the part 'b/1' of the observations, Text\(",
        ),
        (spaces.Dict(), r"observations of Dict\(\) hold no numbers"),
    ):
        with pytest.raises(ValueError, match=told):
            counters(env=environment(unread, one)).spec  # noqa: B018
    for undone in (spaces.Dict(x=box), spaces.Tuple([one, one]), spaces.Sequence(one)):
        with pytest.raises(ValueError, match=rf"actions of {type(undone).__name__}\(.*\) cannot be chosen: "):
            counters(env=environment(box, undone)).spec  # noqa: B018
    with pytest.raises(ValueError, match=r"actions of Box.* MultiBinary or a bounded Box of floats"):
        counters(env=environment(box, spaces.Box(-np.inf, 1))).spec  # noqa: B018
    with pytest.raises(ValueError, match="has no attribute weight to hold a task parameter"):
        counters(parameters=spaces.Dict(weight=one), apply="attribute").spec  # noqa: B018


def test_wrong_requests_are_refused() -> None:
    family = counters()
    with pytest.raises(ValueError, match="at least one task is needed, not 0"):
        family.sample(0, "train", generator())
    with pytest.raises(ValueError, match="at least one lane and one step, not 0 and 200"):
        family.environment(0, CPU)
    lanes = family.environment(2, CPU)
    with pytest.raises(gymnasium.error.ResetNeeded, match="before the first step"):
        lanes.step(np.zeros(2))
    with pytest.raises(ValueError, match=r"unknown options \['x'\]: expected some of \['length', 'reset_mask'\]"):
        lanes.reset(options={"x": 1})
    with pytest.raises(ValueError, match=r"length is int64 \(3,\) where int64 \(2,\) was expected"):
        lanes.reset(options={"length": [1, 2, 3]})
    with pytest.raises(ValueError, match=r"length is 1.5: expected an element of Discrete\(9, start=2\)"):
        lanes.reset(options={"length": [1.5, 2]})
    with pytest.raises(ValueError, match=r"reset_mask is bool \(1,\) where bool \(2,\) was expected"):
        lanes.reset(options={"reset_mask": [True]})
    lanes.reset()
    with pytest.raises(ValueError, match=r"actions of shape \(3,\): expected finite numbers of \(2,\)"):
        lanes.step(np.zeros(3))
    with pytest.raises(ValueError, match="expected finite numbers"):
        lanes.step(np.array([0, np.nan]))


def test_descriptors_are_in_the_order_of_the_space() -> None:
    box, pair = spaces.Box(0.0, 1.0), spaces.Box(2.0, 3.0)
    for parameters, names in (
        (spaces.Dict(length=box, bonus=pair), ["length", "bonus"]),
        (spaces.Dict({"length": box, "bonus": pair}), ["bonus", "length"]),
    ):
        tasks = counters(parameters=parameters, apply="attribute").sample(4, "train", generator())
        assert list(tasks.parameters) == names
        assert torch.equal(tasks.descriptors, torch.cat([tasks.parameters[name] for name in names], dim=1))


def test_a_lane_starts_where_the_environment_does_by_the_same_seed_of_its_own() -> None:
    family = GymnasiumFamily("Pendulum-v1", GRAVITY)
    bare = gymnasium.make("Pendulum-v1", g=10.0).reset(seed=3)[0]
    assert (family.environment(1, CPU).reset(seed=[3])[0][0] == bare).all()
    single = family.single({"g": 10.0}).reset(seed=3)[0]
    np.testing.assert_array_equal(single, gymnasium.make("Pendulum-v1", g=10.0).reset(seed=lane_seeds(3, 1)[0])[0])
    assert (single != bare).any()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_tasks_are_given_by_plain_numbers(shape: tuple[int, ...]) -> None:
    family = GymnasiumFamily("Pendulum-v1", spaces.Dict(g=spaces.Box(5.0, 15.0, shape)))
    for given in ([9.8, 7.0], [[9.8], [7.0]], np.array([9.8, 7.0]), torch.tensor([9.8, 7.0])):
        tasks = tasks_with(family, {"g": given})
        assert tasks.parameters["g"].shape == (2, *shape)
        torch.testing.assert_close(tasks.descriptors, torch.tensor([[9.8], [7.0]]))
    with pytest.raises(ValueError, match="the task parameter g is"):
        tasks_with(family, {"g": [[9.8, 7.0]]})


@pytest.mark.parametrize("value", [4.9, np.nan, 9, -7, 2, "4", None])
def test_tasks_that_a_discrete_space_does_not_hold_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="the task parameter length is"):
        tasks_with(counters(parameters=spaces.Dict(length=spaces.Discrete(5, start=3))), {"length": [value]})


def test_whole_numbers_of_a_discrete_space_may_be_floats() -> None:
    tasks = tasks_with(counters(), {"length": [4.0]})
    assert tasks.parameters["length"].tolist() == [4]


def test_ends_of_float64_ranges_are_tasks() -> None:
    family = GymnasiumFamily("Pendulum-v1", spaces.Dict(g=spaces.Box(0.7, 0.9, dtype=np.float64)))
    assert tasks_with(family, {"g": [0.7, 0.9]}).parameters["g"].shape == (2, 1)
    with pytest.raises(ValueError, match="expected an element of Box"):
        tasks_with(family, {"g": [0.69]})


class Lanes(VectorEnv):
    """Two lanes of one's own, that return what they are told to."""

    def __init__(self, num_envs: int, told: dict[str, Any]) -> None:
        self.num_envs, self.told = num_envs, told
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.single_observation_space = self.single_action_space = spaces.Box(-1, 1, (1,))
        self.observation_space = self.action_space = spaces.Box(-1, 1, (num_envs, 1))

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return np.zeros((self.num_envs, 1)), {}

    def step(self, actions: Any) -> Any:
        no = np.zeros(self.num_envs, dtype=bool)
        ended, cut, info = self.told.get("ended", no), self.told.get("cut", no), self.told.get("info", {})
        return np.zeros((self.num_envs, 1)), np.zeros(self.num_envs), ended, cut, info


def drawn(**told: Any) -> Any:
    tasks = ControlTasks(
        Spec((1,), 1, "continuous", 0), {}, torch.zeros(2, 0), lambda lanes, device: Lanes(lanes, told), Sampling(1, 3)
    )
    idle = learner(tasks.spec, lambda seen: torch.zeros(*seen.shape[:-1], 2))
    return tasks.rollout(policy_of(idle, None), generator())


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"ended": np.array([0.0, 0.3])}, "terminations at step 1 of lane 1 is 0.3"),
        ({"cut": np.array([0, np.nan])}, "truncations at step 1 of lane 1 is nan"),
        ({"ended": np.array([None, False])}, "terminations at step 1 are not an array of numbers"),
        ({"info": {"success": np.array([0.0, np.nan])}}, r"step 1: .*info\['success'\] of lane 1 is nan"),
        ({"info": {"success": np.array([1, -1])}}, r"info\['success'\] of lane 1 is -1"),
        ({"info": {"is_success": np.array(["False", True], dtype=object)}}, r"info\['is_success'\] of lane 0 is 'Fal"),
        ({"info": {"success": np.array([[1], [0]])}}, r"info\['success'\] has shape \(2, 1\)"),
    ],
)
def test_odd_flags_of_ones_own_lanes_are_refused(told: dict[str, Any], message: str) -> None:
    with pytest.raises(RolloutError, match=message):
        drawn(**told)


def test_usual_flags_of_ones_own_lanes_are_taken() -> None:
    success = {"success": np.array([1.0, np.nan]), "_success": np.array([True, False])}
    rollout = drawn(ended=np.array([0, 1]), info=success)
    assert rollout.mask[:, 0].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert rollout.success.tolist() == [[1], [0]]
    assert drawn(info={"is_success": np.array([0, 1])}).success.tolist() == [[0], [1]]
