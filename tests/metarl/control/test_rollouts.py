"""Rollouts of task k: its actions, its environments' seeds and starts do not depend on the number of tasks."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from metarl.control.gymnasium_family import GymnasiumFamily
from metarl.control.sampling import Sampling
from metarl.seeding import spawn, stream
from metarl.testing.subject import untrained
from metarl.types import Learner, Rollout, Spec, policy_of
from metarl_envs.navigation import PointNavigation
from metarl_envs.robots.ant import AntGoal
from metarl_envs.robots.half_cheetah import HalfCheetahVelocity

SMALL = Sampling(episodes=3, horizon=5)
PENDULUMS = GymnasiumFamily("Pendulum-v1", spaces.Dict(g=spaces.Box(5.0, 15.0)), "attribute", SMALL)
CARTS = GymnasiumFamily("CartPole-v1", spaces.Dict(gravity=spaces.Box(5.0, 15.0)), "attribute", SMALL)
FAMILIES = {
    "navigation": PointNavigation(sampling=SMALL),
    "half-cheetah": HalfCheetahVelocity(sampling=SMALL),
    "ant": AntGoal(sampling=SMALL),
    "pendulums": PENDULUMS,
    "pendulums in workers": replace(PENDULUMS, workers=2),
    "carts": CARTS,
}


def told(rollout: Rollout) -> dict[str, Tensor]:
    fields = ("observations", "actions", "log_probs", "rewards", "mask")
    return {name: getattr(rollout, name) for name in fields}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_task_does_does_not_depend_on_the_number_of_tasks(name: str) -> None:
    family: Any = FAMILIES[name]
    learner = untrained(family.spec)
    many, few = (
        told(family.sample(count, "test", stream(0, "tasks")).rollout(policy_of(learner, count), stream(0, "draw")))
        for count in (7, 2)
    )
    for field, values in few.items():
        assert torch.equal(values, many[field][:2]), field
    assert many["actions"].flatten(1).unique(dim=0).shape[0] == 7, "each task has noise of its own"


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_actions_are_those_of_a_generator_for_each_task(kind: Any) -> None:
    """Compared with the slow, obvious version: a draw for each task and step."""
    family: Any = PENDULUMS if kind == "continuous" else CARTS
    logits = torch.tensor([0.3, -1.2])  # a mean and a log standard deviation, or two logits

    def predict(state: Any, inputs: Tensor) -> tuple[Tensor, Any]:
        return logits.expand(*inputs.shape[:-1], 2), state

    learner: Learner = untrained(family.spec)._replace(predict=predict)
    rollout = family.sample(3, "train", stream(0, "tasks")).rollout(policy_of(learner, 3), stream(0, "draw"))
    generator = stream(0, "draw")
    torch.randint(2**31 - 1, (), generator=generator)  # the environments' seed
    for task, own in enumerate(spawn(generator, 3)):
        size = family.spec.output_size
        drawn = torch.empty(5, 3, size).normal_(generator=own) if kind == "continuous" else None
        uniform = torch.empty(5, 3, size).uniform_(generator=own) if kind == "discrete" else None
        for step in range(5):
            for episode in range(3):
                action = rollout.actions[task, episode, step]
                if drawn is not None:
                    expected = logits[0] + drawn[step, episode] * logits[1].exp()
                    torch.testing.assert_close(action, expected)
                else:
                    assert uniform is not None
                    gumbel = -(-uniform[step, episode].double().log()).log()
                    assert int(action) == int((logits.double() + gumbel).argmax())


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_samples_are_actions_of_noise(kind: Any) -> None:
    spec = Spec((2,), 3, kind)
    outputs = torch.randn(40, spec.model_outputs, generator=stream(0, "outputs"))
    noise = spec.distribution.fill_noise(torch.empty(40, 3), stream(0, "noise"))
    sampled = spec.distribution.sample(outputs, stream(0, "noise"))
    assert torch.equal(spec.distribution.act(outputs, noise), sampled)
