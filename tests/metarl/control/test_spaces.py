"""Several choices, bounded actions, and observations of several parts: from the environment to the trained policy."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces.utils import flatten
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from support.spaces_envs import MOVES, SEEN, Dials
from support.spaces_families import BINARY, CHOICES, MOVING, MOVING_PARTS, PARTS, dials
from torch import Tensor

from metarl import Settings, evaluate, open_run, resume, train
from metarl.algorithms import MAML, RL2, MultiTask
from metarl.control import ControlTasks, GymnasiumFamily, Sampling, check_environment, scripted
from metarl.environments import Eye, flat, layout
from metarl.networks import Network
from metarl.outer import TRPO, ProMP
from metarl.seeding import stream, uniform
from metarl.testing import algorithm_outcomes, check_family
from metarl.trained.films import film
from metarl.types import Part, Spec, policy_of
from metarl_envs.navigation import PointNavigation

SMALL = Network(hidden=(8,))
SQUASHED = Network(hidden=(8,), distribution="squashed", std=1.5)
TWO = Settings(iterations=2, meta_batch_size=3, device="cpu", seed=1)
CPU = torch.device("cpu")


def acted(lanes: Any) -> list[Any]:
    return [env.unwrapped.last for env in lanes._envs.values()]


def test_specs_of_several_choices_and_parts() -> None:
    spec = dials(sees=SEEN).spec
    assert (spec.kind, spec.output_size, spec.choices, spec.input_shape) == ("discrete", 8, (3, 2, 3), (17,))
    assert spec.distribution.name == "multi_categorical"
    assert spec.observations == (
        Part(("arm", "angle"), (2,), "float32", 0, 2),
        Part(("arm", "joint"), (), "int64", 2, 3, (3,), (1,)),
        Part(("flags",), (2,), "int8", 5, 2),
        Part(("image",), (2, 2), "uint8", 7, 4, scale=255.0, channels="first"),
        Part(("pair", 0), (2,), "int64", 11, 5, (2, 3), (0, -1)),
        Part(("pair", 1), (), "float64", 16, 1),
    )
    binary = dials(acts=spaces.MultiBinary((2, 2))).spec
    assert (binary.output_size, binary.choices) == (8, (2, 2, 2, 2))
    with pytest.raises(ValueError, match=r"choices=\(2, 2\): expected discrete actions and a sum of output_size=5"):
        Spec((1,), 5, "discrete", choices=(2, 2))
    with pytest.raises(ValueError, match="expected discrete actions"):
        Spec((1,), 4, "continuous", choices=(2, 2))
    with pytest.raises(ValueError, match=r"bounds=\(1.0, 1.0\): expected the lower end first"):
        Spec((1,), 4, "continuous", bounds=(1.0, 1.0))


def test_choices_reach_the_environment_as_it_counts_them() -> None:
    lanes = dials().environment(2, CPU)
    lanes.reset(seed=0)
    lanes.step(np.array([[0, 1, 2], [2, 0, 1]]))
    assert [one.tolist() for one in acted(lanes)] == [[-1, 1, 7], [1, 0, 6]]
    assert all(MOVES.contains(one) for one in acted(lanes))
    yes = spaces.MultiBinary((2, 2))
    lanes = dials(acts=yes).environment(1, CPU)
    lanes.reset(seed=0)
    lanes.step(np.array([[0, 1, 1, 0]]))
    assert acted(lanes)[0].tolist() == [[0, 1], [1, 0]] and yes.contains(acted(lanes)[0])


def test_parts_become_one_vector_in_the_order_of_gymnasium() -> None:
    lanes = dials(sees=SEEN).environment(2, CPU)
    found, _ = lanes.reset(seed=0)
    at = [env.unwrapped.position for env in lanes._envs.values()]
    for row, x in zip(found, at, strict=True):
        expected = [x, -x, 0, 1, 0, 1, 0, 0, 1, 0.2, 0.4, 0, 1, 0, 0, 1, 0.25]
        np.testing.assert_allclose(row, expected, rtol=1e-6)
    # Where nothing is scaled, it is Gymnasium's own flattened observation.
    plain = spaces.Dict(b=spaces.Box(-1, 1, (2, 2)), a=spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(2)]),
                        c=spaces.MultiDiscrete([2, 3]))  # fmt: skip
    plain.seed(0)
    for _ in range(5):
        observation = plain.sample()
        seen = layout(plain)
        np.testing.assert_allclose(Eye("float64", "here").read(seen, observation), flatten(plain, observation))


@pytest.mark.parametrize(
    ("space", "given", "seen"),
    [
        (spaces.MultiDiscrete([2, 3], start=[0, 4]), [1, 4], [0, 1, 1, 0, 0]),
        (spaces.MultiBinary((2, 2)), [[0, 1], [1, 1]], [0, 1, 1, 1]),
        (spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (1,))]), (1, np.array([0.5])), [0, 1, 0.5]),
    ],
)
def test_other_observations_are_vectors_too(space: Any, given: Any, seen: list[float]) -> None:
    found = Eye("float32", "here").read(layout(space), given if isinstance(given, tuple) else np.array(given))
    assert found.tolist() == seen


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda seen: seen | {"arm": {"angle": seen["arm"]["angle"]}}, "an observation has no part 'arm/joint'"),
        (
            lambda seen: seen | {"flags": np.zeros(3)},
            r"the observation's part 'flags' has shape \(3,\) where \(2,\)",
        ),
        (
            lambda seen: seen | {"pair": (np.array([1, 2]), 0.0)},
            "the observation's part 'pair/0' is 2: expected -1 to",
        ),
        (lambda seen: seen | {"pair": (np.array([1, 1]), np.nan)}, "holds numbers that are not finite"),
        (lambda seen: None, "an observation has no part 'arm/angle'"),
    ],
)
def test_observations_outside_their_space_are_named(spoil: Callable[[Any], Any], told: str) -> None:
    class Spoilt(Dials):
        def _seen(self) -> Any:
            return spoil(super()._seen()) if self.last is not None else super()._seen()

    family = GymnasiumFamily(partial(Spoilt, sees=SEEN), spaces.Dict(goal=spaces.Box(-1.0, 1.0)), apply="attribute")
    lanes = family.environment(1, CPU)
    lanes.reset(seed=0)
    with pytest.raises(RuntimeError, match=rf"lane 0, step 1: ValueError: .*{told}"):
        lanes.step(np.zeros((1, 3), dtype=int))


CASES = [
    pytest.param("PARTS", MAML(network=SMALL), TRPO(), id="maml-trpo"),
    pytest.param("CHOICES", MAML(network=SMALL), ProMP(), id="maml-promp"),
    pytest.param("BINARY", MultiTask(network=SMALL), None, id="multitask"),
    pytest.param("PARTS", RL2(hidden=8), None, id="rl2"),
    pytest.param("MOVING_PARTS", MAML(network=SQUASHED), TRPO(), id="squashed-trpo"),
    pytest.param("MOVING", MAML(network=SQUASHED), ProMP(), id="squashed-promp"),
    pytest.param("MOVING", RL2(hidden=8, distribution="squashed"), None, id="squashed-rl2"),
]


@pytest.mark.parametrize(("family", "algorithm", "outer"), CASES)
def test_training_evaluating_and_resuming(family: str, algorithm: Any, outer: Any, tmp_path: Path) -> None:
    named = f"support.spaces_families:{family}"
    whole = train(algorithm, named, outer, settings=TWO)
    train(algorithm, named, outer, settings=replace(TWO, iterations=1), out=tmp_path / "run")
    resumed = resume(tmp_path / "run", iterations=2)
    opened = open_run(tmp_path / "run", device="cpu")
    assert opened.algorithm == algorithm and opened.learner.spec == whole.learner.spec
    for name, value in whole.params.items():
        assert torch.equal(resumed.params[name], value) and torch.equal(opened.params[name], value), name
    one, other = (evaluate(run.learner, run.params, run.family, 2, 1).scores["return"] for run in (whole, opened))
    assert torch.equal(one, other) and one.isfinite().all()
    outcomes = algorithm_outcomes(algorithm, whole.family, tasks=2)
    assert [str(one) for one in outcomes if one.verdict == "FAILED"] == []


@pytest.mark.parametrize("family", [CHOICES, PARTS, BINARY, MOVING_PARTS])
def test_families_keep_the_contract(family: Any) -> None:
    check_family(family, tasks=2)


def test_workers_and_single_environments_do_the_same() -> None:
    here, there = (dials(workers, sees=SEEN).environment(3, CPU) for workers in (1, 2))
    actions = np.array([[0, 1, 2], [2, 0, 1], [1, 1, 0]])
    for step in range(3):
        ours, theirs = ((lanes.reset(seed=4) if step == 0 else lanes.step(actions)) for lanes in (here, there))
        assert np.array_equal(ours[0], theirs[0])
    there.close()
    single = PARTS.single({"goal": np.zeros(1)})
    assert single.action_space == spaces.MultiDiscrete([3, 2, 3]) and single.observation_space.shape == (17,)
    first, _ = single.reset(seed=0)
    assert single.observation_space.contains(first) and single.observation_space.contains(single.step(actions[0])[0])


def test_a_policy_learns_to_choose() -> None:
    family = replace(CHOICES, sampling=Sampling(10, 6))
    settings = Settings(iterations=12, meta_batch_size=6, device="cpu", seed=0)
    trained = train(MAML(network=Network(hidden=(16,), activation="tanh")), family, TRPO(max_kl=0.1), settings=settings)
    before, after = evaluate(trained.learner, trained.params, family, 20, 1).scores["return"].mean(1)
    assert before > -5.5 and after > -4, "random policies get about -7, and stand at -3 to -0.5 without moving"


def test_a_run_of_parts_acts_on_observations_of_the_environment_and_is_filmed() -> None:
    trained = train(MAML(network=SMALL), PARTS, settings=TWO)
    task = trained.tasks(1)
    policy = trained.policy(task, steps=1)
    env = PARTS.own({"goal": np.zeros(1)})
    observation, _ = env.reset(seed=0)
    vector = torch.as_tensor(flat(PARTS.spec.observations, observation))
    one, same = policy(observation), policy(vector)
    assert torch.equal(one.parts[0].probs, same.parts[0].probs)
    assert one.sample().shape == (3,) and one.mode.shape == (3,)
    many = {"arm": {"angle": np.zeros((4, 2)), "joint": np.full(4, 2)}, "flags": np.zeros((4, 2)),
            "image": np.zeros((4, 2, 2)), "pair": (np.full((4, 2), 0), np.zeros(4))}  # fmt: skip
    assert policy(many).log_prob(torch.zeros(4, 3)).shape == (4,)
    with pytest.raises(ValueError, match="an observation has no part 'flags'"):
        policy({name: value for name, value in many.items() if name != "flags"})
    for mean in (False, True):
        clips, _ = film(trained, task, steps=1, mean=mean, height=32)
        assert [len(clip.frames) for clip in clips[0]] == [7, 7]


class Parted(VectorEnv):
    """Somebody else's lanes, which pay for being near a goal and tell a Dict, of arrays or of tensors."""

    def __init__(self, num_envs: int, tensors: bool) -> None:
        self.single_observation_space = spaces.Dict(at=spaces.Box(-9, 9, (1,)), side=spaces.Discrete(2))
        self.single_action_space = spaces.Box(-1, 1, (1,))
        self.observation_space, self.action_space = (
            batch_space(space, num_envs) for space in (self.single_observation_space, self.single_action_space)
        )
        self.num_envs, self.device = num_envs, CPU if tensors else None
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self._step, self._at, self._goal = 0, torch.zeros(num_envs, 1), torch.zeros(num_envs, 1)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self._step = 0
        self._at = torch.rand(self.num_envs, 1, generator=torch.Generator().manual_seed(seed or 0))
        self._goal = torch.as_tensor((options or {}).get("goal", self._goal))
        return self._seen(), {}

    def step(self, actions: Any) -> Any:
        self._step += 1
        self._at = self._at + torch.as_tensor(actions)
        ended = torch.full((self.num_envs,), self._step >= 4)
        found = (-(self._at - self._goal).abs().squeeze(1), torch.zeros_like(ended), ended)
        return self._seen(), *(value if self.device else value.numpy() for value in found), {}

    def _seen(self) -> Any:
        seen = {"at": self._at, "side": (self._at > 0).long().squeeze(1)}
        return seen if self.device else {name: value.numpy() for name, value in seen.items()}


@dataclass(frozen=True)
class Elsewhere:
    """A family of such lanes."""

    tensors: bool
    spec = Spec((3,), 1, "continuous", 1, observations=(
        Part(("at",), (1,), "float32", 0, 1), Part(("side",), (), "int64", 1, 2, (2,), (0,)),
    ))  # fmt: skip

    def sample(self, num_tasks: int, split: Any, generator: torch.Generator) -> ControlTasks:
        goals = uniform(generator, num_tasks, 1)
        return ControlTasks(self.spec, {"goal": goals}, goals, self.environment, Sampling(2, 4))

    def environment(self, num_envs: int, device: torch.device) -> Parted:
        return Parted(num_envs, self.tensors)


@pytest.mark.parametrize("tensors", [False, True])
def test_lanes_of_others_may_tell_parts(tensors: bool) -> None:
    family = Elsewhere(tensors)
    rollout = family.sample(2, "test", stream(0, "tasks")).rollout(
        scripted(family.spec, lambda seen: 0.5 - seen[..., :1]), stream(0, "draw")
    )
    seen = rollout.observations
    torch.testing.assert_close(seen[:, :, 1:, 0], torch.full((2, 2, 3), 0.5))
    assert torch.equal(seen[..., 1], (seen[..., 0] <= 0).float()) and torch.equal(
        seen[..., 2], (seen[..., 0] > 0).float()
    )
    trained = train(MAML(network=SMALL), family, settings=TWO)
    assert trained.policy(trained.tasks(1))({"at": np.zeros(1), "side": 1}).mean.shape == (1,)
    wrong = replace(family.spec, observations=family.spec.observations[:1])
    with pytest.raises(ValueError, match="which is not what"):
        check_environment(Parted(2, tensors), 2, wrong)


@pytest.mark.parametrize("unit", [0.1, 1.0])
def test_bounded_policies_keep_within_the_bounds_of_the_family(unit: float) -> None:
    family = PointNavigation(action_unit=unit, sampling=Sampling(5, 20))
    learner = MAML(network=SQUASHED).build(family.spec)
    assert learner.spec.distribution.bounds == pytest.approx((-0.1 / unit, 0.1 / unit))
    state = learner.begin(learner.init(stream(0, "init")), torch.zeros(3, 2))
    rollout = family.sample(3, "test", stream(0, "tasks")).rollout(policy_of(learner, state), stream(0, "draw"))
    size = rollout.actions[rollout.mask > 0].abs()
    assert size.max() < 0.1 / unit and size.max() > 0.09 / unit


def test_bounded_actions_are_scaled_and_not_clipped() -> None:
    lanes = MOVING.environment(1, CPU)
    lanes.reset(seed=0)
    lanes.step(np.array([[0.5, -0.75]]))
    np.testing.assert_allclose(acted(lanes)[0], [1.0, 0.5])


@pytest.mark.parametrize(
    ("algorithm", "spec", "told"),
    [
        (MAML(network=SQUASHED), Spec((1,), 3, "discrete"), "distribution='squashed' is for other actions than this"),
        (RL2(distribution="squashed"), Spec((1,), 3, "discrete"), "which are discrete: leave it out, for categorical"),
        (
            RL2(distribution="squashed"),
            Spec((1,), 3, "regression"),
            "only policies have one, and this family",
        ),
        (MAML(network=Network(distribution="categorical")), CHOICES.spec, "discrete with 3 choices: leave it out"),
        (
            MAML(network=Network(distribution="beta")),
            MOVING.spec,
            "no distribution 'beta': expected categorical, ",
        ),
    ],
)
def test_distributions_of_other_actions_are_refused(algorithm: Any, spec: Spec, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        algorithm.build(spec)


def test_lanes_with_other_bounds_are_refused() -> None:
    learner = MAML(network=SQUASHED).build(Spec((2,), 2, "continuous", 2))
    tasks = PointNavigation(action_unit=1.0).sample(1, "test", stream(0, "tasks"))
    state = learner.begin(learner.init(stream(0, "init")), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"squashed keep within \[-1, 1\] in every dimension, and the environment"):
        tasks.rollout(policy_of(learner, state), stream(0, "draw"))


def test_a_distribution_of_ones_own_is_one_file() -> None:
    own = Network(hidden=(8,), distribution="support.laplace")
    trained = train(MAML(network=own), MOVING, TRPO(), settings=TWO)
    assert trained.learner.spec.distribution.name == "support.laplace"
    assert [str(one) for one in algorithm_outcomes(MAML(network=own), MOVING, tasks=2) if one.verdict == "FAILED"] == []


@pytest.mark.parametrize("family", [CHOICES, BINARY])
def test_scripted_policies_choose(family: Any) -> None:
    def first(seen: Tensor) -> Tensor:
        return torch.stack(
            [torch.ones(seen.shape[:2]), torch.zeros(seen.shape[:2]), torch.ones(seen.shape[:2])], -1
        ).long()

    tasks = family.sample(2, "test", stream(0, "tasks"))
    rollout = tasks.rollout(scripted(family.spec, first), stream(0, "draw"))
    assert rollout.actions.shape == (2, 3, 6, 3) and (rollout.actions == torch.tensor([1, 0, 1])).all()
    assert torch.equal(rollout.log_probs, torch.zeros(2, 3, 6))
    with pytest.raises(ValueError, match=r"actions from 2 to 2: expected 0 to 1"):
        tasks.rollout(scripted(family.spec, lambda seen: 2 * first(seen)[..., [1, 0, 1]]), stream(0, "draw"))
