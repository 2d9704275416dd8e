"""A control family from any Gymnasium environment, which makes a task plugin short."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Generator, Tensor

from metarl.control.effects import without_effect
from metarl.control.lending import Pool
from metarl.control.sampling import (
    Sampling,
    check_parameters,
    check_splits,
    check_train_tasks,
    from_training_set,
    hull,
    share_tasks,
)
from metarl.control.tasks import ControlTasks
from metarl.environments import (
    Apply,
    LaneOptions,
    Lanes,
    Maker,
    OwnEnv,
    SingleEnv,
    WorkerLanes,
    apply_parameters,
    as_array,
    elements,
    make_env,
    middle,
    named,
    on_workers,
    plain,
    spec_of,
)
from metarl.seeding import global_generators_kept, spawn, uniform
from metarl.types import Spec, Split


@dataclass(frozen=True)
class GymnasiumFamily:
    """Any Gymnasium environment as a control family whose tasks differ in parameters sampled from ranges.

    ``GymnasiumFamily("Pendulum-v1", spaces.Dict(g=spaces.Box(5.0, 15.0)))`` is a family of pendulums with gravities
    from 5 to 15 m/s^2. Box and Discrete spaces are sampled uniformly. The environment receives a Box of one number as a
    float, a larger Box as an array, and a Discrete parameter as an int. The descriptor is the parameters, flattened, in
    the order of ``parameters`` (which Gymnasium sorts by name where it is made from a dict).

    The policy reads Box observations unchanged and Discrete observations one-hot. Images, Boxes from 0 to 255, are
    divided by 255 and have their channels first. Continuous actions in [-1, 1] are scaled to the bounds of the Box
    action space of the task (0 is the middle) and clipped; Discrete actions are chosen by number.

    Lanes and ``single`` derive the seeds of environments from the seed that they are given, so ``single(...).reset(
    seed=3)`` starts elsewhere than the environment itself would.

    Raises:
        ValueError: parameters that cannot be sampled, or an unknown ``apply``. From ``spec``: an environment that
            cannot be made or normalises by running statistics, spaces that are not supported, or a function for
            ``apply`` that scales instead of setting, or sets what a wrapper holds.
    """

    env: Maker
    """Id of a registered environment, or a function that makes one."""
    parameters: spaces.Dict
    """The parameters that differ between tasks, by name, and the range of each: bounded Boxes of floats, or Discrete
    spaces."""
    apply: Apply = "keyword"
    """How the environment receives its parameters: as a "keyword" of its constructor (slow: a new environment for every
    task), as "options" of reset, as an "attribute" of ``env.unwrapped``, or through a function ``(env, **parameters)``
    that is called before every reset. The function gets the environment with its wrappers: set attributes on
    ``env.unwrapped``. It must set values, not scale them: the environment may still hold those of another task."""
    sampling: Sampling = field(default_factory=Sampling)
    """How episodes are sampled."""
    workers: int | None = 1
    """Number of processes that share the environments: 1 for this process only, None for one per CPU. Results do not
    depend on it. It pays off when a step takes longer than some tens of microseconds."""
    splits: Mapping[str, spaces.Dict] = field(default_factory=dict)
    """Other ranges of the parameters for "validation" and "test", such as ``{"test": spaces.Dict(g=spaces.Box(15.0,
    20.0))}``. A split that is not named uses ``parameters``."""
    train_tasks: int | None = None
    """Number of different training tasks, from which training samples. None: fresh tasks all the time."""
    train_seed: int = 0
    """Which training tasks: they follow from this seed, not from the run's."""

    def __post_init__(self) -> None:
        if not (callable(self.apply) or self.apply in ("keyword", "options", "attribute")):
            raise ValueError(f"apply is {self.apply!r}: expected 'keyword', 'options', 'attribute' or a function")
        check_parameters(self.parameters)
        check_splits(self.parameters, self.splits)
        check_train_tasks(self.train_tasks)
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers={self.workers}: expected at least 1, or None for one on each CPU")

    @cached_property
    def parameter_space(self) -> spaces.Dict:
        """The ranges of the parameters in all splits; what lies between two of them is inside, too."""
        return hull(self.parameters, self.splits)

    @property
    def splits_share_tasks(self) -> bool:
        """Whether test tasks may occur in training or validation: all parameters are Discrete, and ranges overlap."""
        test = self._ranges("test")
        return any(share_tasks(self._ranges(split), test) for split in ("train", "validation"))

    @cached_property
    def spec(self) -> Spec:
        """The policy's inputs and outputs, read from an environment with parameters in the middle of their ranges.

        Warns of parameters that reach nothing, or only a part of what the environment computes from them.
        """
        spec, notes = self._examined
        for note in notes:
            warnings.warn(f"{named(self.env)}: {note}", stacklevel=3)
        return spec

    @property
    def notes(self) -> tuple[str, ...]:
        """A line for each parameter that reaches nothing, or only a part of what the environment computes from it."""
        return self._examined[1]

    @cached_property
    def _examined(self) -> tuple[Spec, tuple[str, ...]]:
        with global_generators_kept():
            spec, notes = self._examined_in(self.parameters)
            for split, ranges in self.splits.items():
                if (other := self._examined_in(ranges)[0]) != spec:
                    raise ValueError(f"{named(self.env)}: {split} tasks ask for {other}, those in training for {spec}")
        return spec, notes

    def _examined_in(self, ranges: spaces.Dict) -> tuple[Spec, tuple[str, ...]]:
        values, low, high = ({name: plain(space, _at(space, end)) for name, space in ranges.spaces.items()}
                             for end in (0.5, 0.0, 1.0))  # fmt: skip
        try:
            env = make_env(self.env, self.apply, values)
        except Exception as error:
            raise ValueError(
                f"cannot make {named(self.env)} with {values}, applied by {self.apply}: {error}"
            ) from error
        try:
            apply_parameters(env, self.apply, values)
            return spec_of(env, ranges), tuple(without_effect(env, self.apply, low, high))
        finally:
            env.close()

    def _ranges(self, split: Split) -> spaces.Dict:
        return self.splits.get(split, self.parameters)

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> ControlTasks:
        """Sample tasks; splits without ranges of their own share one distribution.

        With ``train_tasks``, training tasks are picked from those, with replacement. Raises ValueError for fewer than
        one task, and for more ``train_tasks`` than there are.
        """
        if num_tasks < 1:
            raise ValueError(f"at least one task is needed, not {num_tasks}")
        draw = partial(_drawn, self._ranges(split), list(self.parameters.spaces))
        if split == "train" and self.train_tasks is not None:
            parameters = from_training_set(draw, self.train_tasks, self.train_seed, num_tasks, generator)
        else:
            parameters = draw(num_tasks, generator)
        numbers = [values.reshape(num_tasks, -1).to(torch.get_default_dtype()) for values in parameters.values()]
        return ControlTasks(self.spec, parameters, torch.cat(numbers, dim=1), self._pool, self.sampling)

    def environment(self, num_envs: int, device: torch.device) -> VectorEnv[Any, Any, Any]:
        """Return new lanes on the CPU, whatever the device. They belong to the caller, who closes them."""
        return self._pool(num_envs, device)

    def single(self, parameters: Mapping[str, Any], render_mode: str | None = None) -> SingleEnv:
        """Return one environment of one task, with the lanes' observations and actions."""
        return SingleEnv(self.env, self.parameter_space, self.apply, self.spec, parameters, render_mode)

    def own(self, parameters: Mapping[str, Any]) -> OwnEnv:
        """Return the environment of one task with its own observations and actions, not the lanes'.

        Raises ValueError for parameters that are no task.
        """
        given = {
            name: elements(name, as_array(value)[None], self.parameter_space[name])
            for name, value in parameters.items()
        }
        values = {name: plain(self.parameter_space[name], rows[0]) for name, rows in given.items()}
        return OwnEnv(self.env, self.apply, values)

    @cached_property
    def _pool(self) -> Pool:
        options = LaneOptions(self.env, self.parameter_space, self.apply, self.spec, 1, self.sampling.horizon)
        return Pool(partial(_lanes, options, self.workers))


def _lanes(options: LaneOptions, workers: int | None, num_envs: int, device: torch.device) -> Lanes | WorkerLanes:
    dtype = torch.empty(0).numpy().dtype.name  # NumPy's name of torch's default dtype
    return on_workers(workers, options._replace(num_envs=num_envs, dtype=dtype))


def _at(space: spaces.Space[Any], share: float) -> np.ndarray[Any, Any]:
    """Return the element of a space that lies at a share of its range; a Discrete one has its first in the middle."""
    if share == 0.5:
        return middle(space)
    if isinstance(space, spaces.Discrete):
        return np.asarray(space.start + round(share * (space.n - 1)))
    assert isinstance(space, spaces.Box)
    return np.asarray((space.high if share else space.low).astype(float))


def _drawn(ranges: spaces.Dict, names: list[str], num_tasks: int, generator: Generator) -> dict[str, Tensor]:
    """Sample parameters ``[task, *shape]``, by the names and in their order."""
    return {
        name: _sample(ranges[name], num_tasks, own)
        for name, own in zip(names, spawn(generator, len(names)), strict=True)
    }


def _sample(space: spaces.Space[object], num_tasks: int, generator: Generator) -> Tensor:
    """Sample ``[task, *space.shape]`` uniformly."""
    if isinstance(space, spaces.Discrete):
        # In double precision, whatever the default: the values of a seed do not depend on it.
        return int(space.start) + (int(space.n) * uniform(generator, num_tasks, dtype=torch.float64)).long()
    assert isinstance(space, spaces.Box)
    dtype = torch.get_default_dtype()
    low, high = torch.tensor(space.low.tolist(), dtype=dtype), torch.tensor(space.high.tolist(), dtype=dtype)
    return low + (high - low) * uniform(generator, num_tasks, *space.shape)
