"""Playing episodes of given actions in the vector environments of a control family."""

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from metarl.control import ControlTasks, on_torch
from metarl.seeding import stream

CPU = torch.device("cpu")


class Played(NamedTuple):
    """What lanes said to given actions."""

    observations: Tensor  # [step + 1, lane, *input_shape]
    rewards: Tensor  # [step, lane]
    terminated: Tensor  # [step, lane]
    truncated: Tensor  # [step, lane]

    @property
    def over(self) -> Tensor:
        """Whether an episode has ended, ``[step, lane]``."""
        return self.terminated | self.truncated

    def part(self, first: int, last: int, lanes: slice) -> "Played":
        """Return what some lanes said to the steps from ``first`` up to ``last``."""
        return Played(self.observations[first : last + 1, lanes], *(told[first:last, lanes] for told in self[1:]))


class Lanes:
    """The lanes of some tasks, one for each, on the CPU."""

    def __init__(self, tasks: ControlTasks, seed: int = 0) -> None:
        self.tasks, self.seed, self.count = tasks, seed, len(tasks.descriptors)
        self.env = tasks.environment(self.count, CPU)
        self.on_torch = on_torch(self.env)

    def reset(self) -> Tensor:
        """Start every lane with its task, from the seed."""
        return told(self.env.reset(seed=self.seed, options=dict(self.tasks.parameters))[0])

    def restart(self, lanes: Tensor) -> Tensor:
        """Start some lanes again, ``[lane]`` bool."""
        return told(self.env.reset(options={"reset_mask": lanes if self.on_torch else lanes.numpy()})[0])

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Act, ``[lane, ...]``, and return observations, rewards, terminations and truncations."""
        observation, reward, ended, cut, _ = self.env.step(actions.clone() if self.on_torch else actions.numpy())
        return told(observation), told(reward), told(ended), told(cut)

    def play(self, actions: Tensor) -> Played:
        """Reset, and take all actions ``[step, lane, ...]``."""
        return self.go_on(self.reset(), actions)

    def go_on(self, observation: Tensor, actions: Tensor) -> Played:
        """Take all actions ``[step, lane, ...]``."""
        steps = [self.step(action) for action in actions]
        observations = torch.stack([observation, *(step[0] for step in steps)])
        rewards, *flags = (torch.stack([step[index] for step in steps]) for index in (1, 2, 3))
        return Played(observations, rewards, *(values.bool() for values in flags))


def told(value: Any) -> Tensor:
    """Return a copy of an environment's array, into which it may write again."""
    return value.detach().cpu().clone() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))


def random_actions(tasks: ControlTasks, steps: int) -> Tensor:
    """Return actions ``[step, lane, ...]``: uniform in the space, of which a Box is cut to [-1, 1]."""
    space, lead = tasks.environment(1, CPU).single_action_space, (steps, len(tasks.descriptors))
    generator = stream(0, "check")
    if isinstance(space, spaces.Discrete):
        return torch.randint(int(space.n), lead, generator=generator)
    assert isinstance(space, spaces.Box)
    low, high = (torch.tensor(end.tolist()).clamp(-1, 1) for end in (space.low, space.high))
    return low + (high - low) * torch.rand(*lead, *space.shape, generator=generator)
