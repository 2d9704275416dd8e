"""Some tasks of a batch draw what they draw among all: tasks, batches and learners' states."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import VectorWrapper
from torch import Generator, Tensor

from metarl.algorithms import MAML
from metarl.algorithms.mann import MANN
from metarl.algorithms.multitask import MultiTask
from metarl.algorithms.protonet import ProtoNet
from metarl.algorithms.reptile import Reptile
from metarl.algorithms.rl2 import RL2
from metarl.algorithms.snail import SNAIL
from metarl.control import ControlTasks, GymnasiumFamily, Sampling, can_be_placed
from metarl.environments.mdp import MDPVectorEnv
from metarl.evaluation import adapt, sample_tasks
from metarl.fewshot import FunctionTasks, NWayKShot, Regression, TableRegression
from metarl.networks import Network
from metarl.seeding import stream
from metarl.selection import select_tasks
from metarl.types import Examples, Experience, Family, Learner, Policy, Role, Rollout, Shared, policy_of, select
from metarl_envs.bandit import Bandit
from metarl_envs.navigation import PointNavigation
from metarl_envs.robots.half_cheetah import HalfCheetahVelocity
from metarl_envs.tabular import TabularMDP
from metarl_plugins.sinusoid import Harmonic, Sinusoid
from tests.support.synthetic import rollout

SMALL = Sampling(episodes=2, horizon=4)
SOME = [3, 1]


def tensors(values: Any) -> list[Tensor]:
    parts = vars(values).values() if hasattr(values, "__dict__") else values
    return [part for part in parts if isinstance(part, Tensor)]


def same(found: Examples | Rollout, expected: Examples | Rollout) -> bool:
    pairs = zip(tensors(found), tensors(expected), strict=True)
    return all(torch.allclose(one.double(), other.double(), rtol=1e-5, atol=1e-6) for one, other in pairs)


PIXELS = torch.rand(60, 1, 4, 4, generator=Generator().manual_seed(0))
LABELLED: dict[str, Family] = {
    "sinusoid": Sinusoid(half_range=True),
    "harmonic": Harmonic(),
    "regression": Regression(lambda inputs, slope: slope * inputs, {"slope": (-1.0, 1.0)}),
    "classes": NWayKShot(PIXELS, torch.arange(60) // 6, ways=2, shots=2, rotations="all", classes={"test": range(10)}),
    "table": TableRegression(PIXELS.flatten(1), PIXELS[:, 0, 0, 0], torch.arange(60) // 6, shots=2),
}
TABLE_SPLITS = {"train": range(4), "test": range(4, 10)}
LABELLED["table"] = TableRegression(
    PIXELS.flatten(1), PIXELS[:, 0, 0, 0], torch.arange(60) // 6, shots=2, splits=TABLE_SPLITS
)


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("role", ["support", "query"])
def test_some_labelled_tasks_draw_what_they_draw_in_the_whole(name: str, role: Role) -> None:
    whole: Any = sample_tasks(LABELLED[name], 5)
    some, ours, theirs = whole.select(SOME), stream(0, "draw"), stream(0, "draw")
    assert type(some) is type(whole)
    assert {key: rows.tolist() for key, rows in some.parameters.items()} == {
        key: rows[SOME].tolist() for key, rows in whole.parameters.items()
    }
    for _ in range(2):  # a second draw from the same generator, too
        found, expected = some.draw(role, ours), whole.draw(role, theirs)
        assert [values.tolist() for values in tensors(found)] == [values[SOME].tolist() for values in tensors(expected)]
    again = some.select(slice(1, 2))
    assert again.draw(role, stream(0, "x")).inputs.equal(whole.draw(role, stream(0, "x")).inputs[1:2])


CONTROL: dict[str, Family] = {
    "navigation": PointNavigation(sampling=SMALL),
    "bandit": Bandit(arms=3, sampling=SMALL),
    "tabular": TabularMDP(sampling=SMALL),
    "robot": HalfCheetahVelocity(sampling=SMALL),
    "gymnasium": GymnasiumFamily("Pendulum-v1", spaces.Dict(g=spaces.Box(5.0, 15.0)), "attribute", SMALL),
}


@pytest.mark.parametrize("name", CONTROL)
@pytest.mark.parametrize("algorithm", [MAML(network=Network(hidden=(8,)), step_size=5.0), RL2()])
def test_some_environments_play_what_they_play_in_the_whole(name: str, algorithm: Any) -> None:
    family = CONTROL[name]
    learner, whole = algorithm.build(family.spec), sample_tasks(family, 5)
    params = learner.init(Generator().manual_seed(0))
    state = adapt(learner, params, whole, 1)[-1].state  # the policies of the tasks differ
    some = select_tasks(whole, SOME)
    assert isinstance(some, ControlTasks)
    expected = whole.rollout(policy_of(learner, state), stream(0, "play"))  # type: ignore[attr-defined]
    found = some.rollout(policy_of(learner, select(state, SOME)), stream(0, "play"))
    assert found.actions.shape[0] == 2
    assert same(found, expected.select(SOME))
    assert not same(found, expected.select([1, 3]))  # nor are all tasks alike
    alone = some.select([0]).rollout(policy_of(learner, select(state, [3])), stream(0, "play"))
    assert same(alone, expected.select([3]))


@pytest.mark.parametrize("name", CONTROL)
def test_some_environments_play_in_lanes_of_their_own_only(name: str) -> None:
    whole, made = sample_tasks(CONTROL[name], 5), list[int]()
    assert isinstance(whole, ControlTasks)

    def environment(num_envs: int, device: torch.device) -> Any:
        made.append(num_envs)
        return whole.environment(num_envs, device)

    learner = MAML(network=Network(hidden=(8,))).build(CONTROL[name].spec)
    state = learner.begin(learner.init(Generator().manual_seed(0)), whole.descriptors[SOME])
    replace(whole, environment=environment).select(SOME).rollout(policy_of(learner, state), stream(0, "play"))
    assert made == [len(SOME) * SMALL.episodes]


def test_lanes_that_reset_in_their_own_way_are_played_in_the_whole() -> None:
    """A subclass may draw what its base does not: it must say itself that it heeds places."""

    class Jittered(MDPVectorEnv):
        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            return super().reset(seed=seed, options=options)

    class Heeding(Jittered):
        places: Any = None

    navigation = sample_tasks(CONTROL["navigation"], 2)
    assert isinstance(navigation, ControlTasks)
    env = navigation.environment(2, torch.device("cpu"))
    assert can_be_placed(env)
    env.__class__ = Jittered
    assert not can_be_placed(env)
    env.__class__ = Heeding
    assert can_be_placed(env)
    assert not can_be_placed(VectorWrapper(env))


@dataclass(frozen=True)
class Noisy:
    """Tasks of somebody else, without a select: every draw takes numbers for all tasks from one generator."""

    offsets: Tensor

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return {"offset": self.offsets}

    @property
    def descriptors(self) -> Tensor:
        return self.offsets.unsqueeze(1)

    def draw(self, role: Role, generator: Generator) -> Examples:
        inputs = torch.randn(3, len(self.offsets), 1, generator=generator).movedim(0, 1)
        return Examples(inputs=inputs, targets=inputs + self.offsets.reshape(-1, 1, 1))


class Shaken(FunctionTasks):
    """A subclass that draws more than its base: selecting must not change what it draws."""

    def draw(self, role: Role, generator: Generator) -> Examples:
        drawn = super().draw(role, generator)
        noise = torch.randn(drawn.targets.shape[1], len(drawn.targets), generator=generator).T.unsqueeze(2)
        return Examples(inputs=drawn.inputs, targets=drawn.targets + noise)


def shaken() -> Shaken:
    tasks = Sinusoid().sample(5, "test", stream(0, "tasks"))
    return Shaken(**{name: value for name, value in vars(tasks).items()})


@pytest.mark.parametrize("whole", [Noisy(torch.arange(5.0)), shaken()], ids=["foreign", "subclass"])
def test_tasks_of_others_are_drawn_in_the_whole(whole: Any) -> None:
    some = select_tasks(whole, SOME)
    found, expected = some.draw("support", stream(0, "a")), whole.draw("support", stream(0, "a"))  # type: ignore[attr-defined]
    assert found.targets.equal(expected.targets[SOME])
    assert some.descriptors.equal(whole.descriptors[SOME])
    assert (
        select_tasks(some, [1])
        .draw("query", stream(0, "b"))
        .inputs.equal(  # type: ignore[attr-defined]
            whole.draw("query", stream(0, "b")).inputs[[1]]
        )
    )


class Played:
    """Environments of somebody else: the reward of an action is the action plus the task's number plus noise."""

    parameters: Mapping[str, Tensor] = {"number": torch.arange(4.0)}
    descriptors = torch.arange(4.0).unsqueeze(1)

    def rollout(self, policy: Policy, generator: Generator) -> Rollout:
        outputs, _ = policy.predict(policy.state, torch.ones(4, 2, 1))
        noise = torch.rand(2, 4, generator=generator).T
        numbers = (outputs[..., 0] + noise + torch.arange(4.0).unsqueeze(1)).unsqueeze(2)
        flags = torch.zeros(4, 2, 1, dtype=torch.bool)
        lasts, seen, actions = torch.ones(4, 2, 1), torch.ones(4, 2, 1, 1), numbers.unsqueeze(3)
        ones = torch.ones(4, 2, 1)
        return Rollout(observations=seen, last_observations=lasts, actions=actions, log_probs=ones, rewards=numbers,
                       terminated=flags, truncated=flags, mask=ones)  # fmt: skip


def test_environments_of_others_are_played_in_the_whole() -> None:
    whole: Any = Played()

    def policy(scale: Tensor) -> Policy:
        return Policy("continuous", scale, lambda state, seen: (state.reshape(-1, 1, 1) * seen, state))

    some: Any = select_tasks(whole, torch.tensor([False, True, False, True]))
    expected = whole.rollout(policy(torch.arange(4.0)), stream(0, "a"))
    assert some.rollout(policy(torch.tensor([1.0, 3.0])), stream(0, "a")).rewards.equal(expected.rewards[[1, 3]])


def learners() -> list[tuple[str, Learner, Any]]:
    few = Network(hidden=(6,))
    continuous, classes = PointNavigation().spec, LABELLED["classes"].spec
    made: list[tuple[str, Any, Any]] = [
        ("meta-sgd", MAML(learn_step_sizes=True, network=few), continuous),
        ("rl2", RL2(), continuous),
        ("multitask", MultiTask(condition="concatenate", network=few), continuous),
        ("maml", MAML(network=few), classes),
        ("reptile", Reptile(network=few), classes),
        ("protonet", ProtoNet(network=few), classes),
        ("snail", SNAIL(), classes),
        ("mann", MANN(), classes),
    ]
    return [(name, algorithm.build(spec), spec) for name, algorithm, spec in made]


@pytest.mark.parametrize(("name", "learner", "spec"), learners(), ids=lambda value: value if type(value) is str else "")
def test_states_are_selected_from(name: str, learner: Learner, spec: Any) -> None:
    generator = Generator().manual_seed(0)
    params = learner.init(generator)
    state = learner.begin(params, torch.randn(4, spec.descriptor_size, generator=generator))
    if spec.control:
        inputs = torch.randn(4, 2, *spec.input_shape, generator=generator)
        batch: Any = rollout(spec, 4, generator, episodes=2)
        state = state if learner.memory else learner.adapt(state, batch)
    else:
        batch = sample_tasks(LABELLED["classes"], 4).draw("support", generator)  # type: ignore[attr-defined]
        inputs, state = batch.inputs, learner.adapt(state, batch)
    expected, _ = learner.predict(state, inputs)
    found, _ = learner.predict(select(state, SOME), inputs[SOME])
    assert torch.allclose(found, expected[SOME], atol=1e-6)
    assert not torch.allclose(expected[0], expected[1], atol=1e-4)


def test_batches_have_select() -> None:
    batch = Examples(inputs=torch.arange(12.0).reshape(4, 3, 1), targets=torch.arange(12).reshape(4, 3))
    experience = Experience(descriptors=torch.zeros(4, 0), supports=(batch,), query=batch, progress=0.5)
    assert batch.select([2, 0]).targets.tolist() == [[6, 7, 8], [0, 1, 2]]
    assert batch.select(3).inputs.shape == (1, 3, 1)
    query: Any = experience.select(torch.tensor([True, False, False, True])).query
    assert query.targets.tolist() == [[0, 1, 2], [9, 10, 11]]
    assert experience.select(slice(1, 2)).progress == 0.5
    assert batch.select(slice(2)).inputs.data_ptr() == batch.inputs.data_ptr()  # a view
    played = rollout(PointNavigation().spec, 3, Generator().manual_seed(0)).select([-1])
    assert played.success is None and played.mask.shape[0] == 1


def test_what_is_shared_must_be_told_apart() -> None:
    state = ({"weight": torch.zeros(5, 2)}, torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"\(3, 4\), \(5, 2\) have no common number of tasks.*Shared"):
        select(state, [0])
    kept, picked = select((Shared({"weight": torch.zeros(3, 2)}), torch.zeros(3, 4)), [0, 2])
    assert kept["weight"].shape == (3, 2) and picked.shape == (2, 4)


@pytest.mark.parametrize("which", [[], [1, 1], [0, -4], slice(9, 12)])
def test_no_task_and_the_same_task_twice_are_refused(which: Any) -> None:
    whole = Noisy(torch.arange(4.0))
    with pytest.raises(ValueError, match="expected one at least, and none twice"):
        select_tasks(whole, which)
    with pytest.raises(IndexError):
        select_tasks(whole, [4])
