"""Run episodes with given actions in the vector environments of a control family."""

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from metarl.control import ControlTasks, on_torch
from metarl.environments import composite, flat
from metarl.seeding import stream
from metarl.types import Spec

CPU = torch.device("cpu")


class Played(NamedTuple):
    """The responses of lanes to given actions."""

    observations: Tensor  # [step + 1, lane, *input_shape]
    rewards: Tensor  # [step, lane]
    terminated: Tensor  # [step, lane]
    truncated: Tensor  # [step, lane]

    @property
    def over(self) -> Tensor:
        """Whether an episode has ended, ``[step, lane]``."""
        return self.terminated | self.truncated

    def part(self, first: int, last: int, lanes: slice) -> "Played":
        """Return the responses of some lanes to the steps from ``first`` up to ``last``."""
        return Played(self.observations[first : last + 1, lanes], *(values[first:last, lanes] for values in self[1:]))


class Lanes:
    """The lanes of some tasks on the CPU, one lane per task."""

    def __init__(self, tasks: ControlTasks, seed: int = 0) -> None:
        self.tasks, self.seed, self.count = tasks, seed, len(tasks.descriptors)
        self.env = tasks.environment(self.count, CPU)
        self.on_torch = on_torch(self.env)

    def reset(self) -> Tensor:
        """Reset every lane with its task and the seed."""
        return self._seen(self.env.reset(seed=self.seed, options=dict(self.tasks.parameters))[0])

    def restart(self, lanes: Tensor) -> Tensor:
        """Reset the lanes of a mask, ``[lane]`` bool."""
        return self._seen(self.env.reset(options={"reset_mask": lanes if self.on_torch else lanes.numpy()})[0])

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take actions ``[lane, ...]``; return observations, rewards, terminations and truncations."""
        observation, reward, ended, cut, _ = self.env.step(actions.clone() if self.on_torch else actions.numpy())
        return self._seen(observation), as_tensor(reward), as_tensor(ended), as_tensor(cut)

    def play(self, actions: Tensor) -> Played:
        """Reset, then take all actions ``[step, lane, ...]``."""
        return self.go_on(self.reset(), actions)

    def go_on(self, observation: Tensor, actions: Tensor) -> Played:
        """Take all actions ``[step, lane, ...]``, from the given observation on."""
        steps = [self.step(action) for action in actions]
        observations = torch.stack([observation, *(step[0] for step in steps)])
        rewards, *flags = (torch.stack([step[index] for step in steps]) for index in (1, 2, 3))
        return Played(observations, rewards, *(values.bool() for values in flags))

    def _seen(self, observation: Any) -> Tensor:
        return seen(self.tasks.spec, observation)


def seen(spec: Spec, observation: Any) -> Tensor:
    """Return a copy of an environment's observations as tensors: of a Dict or a Tuple, what the policy gets."""
    if composite(observation):
        observation = flat(spec.observations, observation).astype(torch.empty(0).numpy().dtype)
    return as_tensor(observation)


def as_tensor(value: Any) -> Tensor:
    """Return a copy of an environment's array, because the environment may write into the array again."""
    return value.detach().cpu().clone() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))


def random_actions(tasks: ControlTasks, steps: int) -> Tensor:
    """Return actions ``[step, lane, ...]``, uniform in the action space; a Box is clipped to [-1, 1]."""
    space, lead = tasks.environment(1, CPU).single_action_space, (steps, len(tasks.descriptors))
    generator = stream(0, "check")
    if isinstance(space, spaces.Discrete):
        return torch.randint(int(space.n), lead, generator=generator)
    if isinstance(space, spaces.MultiDiscrete):
        return (torch.from_numpy(space.nvec) * torch.rand(*lead, *space.shape, generator=generator)).long()
    assert isinstance(space, spaces.Box)
    low, high = (torch.tensor(end.tolist()).clamp(-1, 1) for end in (space.low, space.high))
    return low + (high - low) * torch.rand(*lead, *space.shape, generator=generator)
