"""A task family under test: few tasks, few episodes, and a learner without parameters."""

import dataclasses
from typing import Any, get_args

import torch
from torch import Tensor

from metarl.control import ControlTasks
from metarl.seeding import stream
from metarl.types import Batch, Family, Learner, Role, Spec, Split, Tasks, environments_of, labelled_tasks, policy_of

ROLES = get_args(Role)
EPISODES = 2
"""Most episodes per task in a draw. More would find no other faults."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A family, and the size of its samples."""

    family: Family
    count: int
    """Tasks in a sample."""
    device: torch.device

    @property
    def spec(self) -> Spec:
        """The family's spec."""
        return self.family.spec

    def sample(self, split: Split = "train", seed: int = 0, count: int | None = None) -> Tasks:
        """Sample tasks. The same seed gives the same tasks. Control tasks draw few episodes."""
        tasks = self.family.sample(count or self.count, split, stream(seed, split))
        if not isinstance(tasks, ControlTasks):
            return tasks
        sampling = dataclasses.replace(tasks.sampling, episodes=min(tasks.sampling.episodes, EPISODES))
        return dataclasses.replace(tasks, sampling=sampling)

    def splits(self) -> list[Split]:
        """The splits that the family has tasks for."""
        return [split for split in get_args(Split) if self.refusal(split) is None]

    def refusal(self, split: Split) -> ValueError | None:
        """Return why the family has no tasks for a split; None if it has. Training tasks must exist."""
        try:
            self.sample(split)
        except ValueError as error:
            return error if split != "train" else None
        return None

    def draw(self, tasks: Tasks, role: Role = "support", seed: int = 0, device: torch.device | str = "cpu") -> Batch:
        """Draw a batch with a learner without parameters. The same seed gives the same batch."""
        generator = stream(seed, role, device=device)
        if not self.spec.control:
            return labelled_tasks(tasks).draw(role, generator)
        learner = untrained(self.spec)
        return environments_of(tasks).rollout(policy_of(learner, learner.begin({}, tasks.descriptors)), generator)


def drawing(tasks: Tasks) -> Any:
    """Return the plugin's function that determines what is drawn."""
    if isinstance(tasks, ControlTasks):
        return tasks.environment
    return getattr(tasks, "draw", None) or getattr(tasks, "rollout", None)


def untrained(spec: Spec) -> Learner:
    """Return a learner without parameters. Its outputs are 0, so its policies are uniform or standard normal."""

    def predict(state: int, inputs: Tensor) -> tuple[Tensor, int]:
        return inputs.new_zeros(*inputs.shape[: inputs.ndim - len(spec.input_shape)], spec.model_outputs), state

    return Learner(
        spec,
        adaptations=0,
        init=lambda generator: {},
        begin=lambda params, descriptors: len(descriptors),
        adapt=lambda state, batch: state,
        predict=predict,
        meta_loss=lambda params, experience: (torch.zeros(len(experience.descriptors)), {}),
    )
