"""A control family from any Gymnasium environment, which makes a task plugin short."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from gymnasium import spaces
from torch import Generator, Tensor

from metarl.control.sampling import Sampling
from metarl.control.tasks import ControlTasks
from metarl.environments import (
    Apply,
    LaneOptions,
    Lanes,
    Maker,
    SingleEnv,
    WorkerLanes,
    apply_parameters,
    is_bounded_box,
    make_env,
    middle,
    on_workers,
    plain,
    spec_of,
)
from metarl.seeding import spawn, uniform
from metarl.types import Spec, Split


@dataclass(frozen=True)
class GymnasiumFamily:
    """Any Gymnasium environment as a control family whose tasks differ in parameters sampled from ranges.

    ``GymnasiumFamily("Pendulum-v1", spaces.Dict(g=spaces.Box(5.0, 15.0)))`` is a family of pendulums with gravities
    from 5 to 15 m/s^2. Box and Discrete spaces are sampled uniformly. The environment receives a Box of one number as a
    float, a larger Box as an array, and a Discrete parameter as an int. The descriptor is the parameters, flattened, in
    the order of ``parameters``.

    The policy reads Box observations unchanged and Discrete observations one-hot. Continuous actions in [-1, 1] are
    scaled to the bounds of the Box action space (0 is the middle) and clipped; Discrete actions are chosen by number.

    Raises:
        ValueError: parameters that cannot be sampled, or an unknown ``apply``. From ``spec``: an environment that
            cannot be made, or spaces that are not supported.
    """

    env: Maker
    """Id of a registered environment, or a function that makes one."""
    parameters: spaces.Dict
    """The parameters that differ between tasks, by name, and the range of each: bounded Boxes of floats, or Discrete
    spaces."""
    apply: Apply = "keyword"
    """How the environment receives its parameters: as a "keyword" of its constructor (slow: a new environment for every
    task), as "options" of reset, as an "attribute" of ``env.unwrapped``, or through a function ``(env, **parameters)``
    that is called before every reset. The function must set values, not scale them: the environment may still hold
    those of another task."""
    sampling: Sampling = field(default_factory=Sampling)
    """How episodes are sampled."""
    workers: int | None = 1
    """Number of processes that share the environments: 1 for this process only, None for one per CPU. Results do not
    depend on it. It pays off when a step takes longer than some tens of microseconds."""

    def __post_init__(self) -> None:
        if not (callable(self.apply) or self.apply in ("keyword", "options", "attribute")):
            raise ValueError(f"apply is {self.apply!r}: expected 'keyword', 'options', 'attribute' or a function")
        if not isinstance(self.parameters, spaces.Dict) or not self.parameters.spaces:
            raise ValueError(f"parameters are {self.parameters!r}: expected a gymnasium.spaces.Dict that is not empty")
        for name, space in self.parameters.spaces.items():
            if not (is_bounded_box(space) or isinstance(space, spaces.Discrete)):
                raise ValueError(f"cannot sample {name!r} from {space}: expected Discrete or a bounded Box of floats")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers={self.workers}: expected at least 1, or None for one on each CPU")

    @property
    def parameter_space(self) -> spaces.Dict:
        """The ranges of the parameters, under the name that all control families use."""
        return self.parameters

    @property
    def splits_share_tasks(self) -> bool:
        """Whether all parameters are Discrete: then there are finitely many tasks, and none are held out."""
        return all(isinstance(space, spaces.Discrete) for space in self.parameters.spaces.values())

    @cached_property
    def spec(self) -> Spec:
        """The policy's inputs and outputs, read from an environment with parameters in the middle of their ranges."""
        values = {name: plain(space, middle(space)) for name, space in self.parameters.spaces.items()}
        try:
            env = make_env(self.env, self.apply, values)
        except Exception as error:
            raise ValueError(f"cannot make {self.env} with {values}, applied by {self.apply}: {error}") from error
        try:
            apply_parameters(env, self.apply, values)
            return spec_of(env, self.parameters)
        finally:
            env.close()

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> ControlTasks:
        """Sample tasks; the splits share one distribution. Raises ValueError for fewer than one task."""
        if num_tasks < 1:
            raise ValueError(f"at least one task is needed, not {num_tasks}")
        streams = zip(self.parameters.spaces.items(), spawn(generator, len(self.parameters.spaces)), strict=True)
        parameters = {name: _sample(space, num_tasks, own) for (name, space), own in streams}
        numbers = [values.reshape(num_tasks, -1).to(torch.get_default_dtype()) for values in parameters.values()]
        return ControlTasks(self.spec, parameters, torch.cat(numbers, dim=1), self.environment, self.sampling)

    def environment(self, num_envs: int, device: torch.device) -> Lanes | WorkerLanes:
        """Return lanes on the CPU, whatever the device. They are kept and reused for all tasks of this family."""
        if num_envs not in self._kept or self._kept[num_envs].closed:
            horizon = self.sampling.horizon
            dtype = torch.empty(0).numpy().dtype.name  # NumPy's name of torch's default dtype
            options = LaneOptions(self.env, self.parameters, self.apply, self.spec, num_envs, horizon, dtype)
            self._kept[num_envs] = on_workers(self.workers, options)
        return self._kept[num_envs]

    def single(self, parameters: Mapping[str, Any], render_mode: str | None = None) -> SingleEnv:
        """Return one environment of one task, with the lanes' observations and actions."""
        return SingleEnv(self.env, self.parameters, self.apply, self.spec, parameters, render_mode)

    @cached_property
    def _kept(self) -> dict[int, Lanes | WorkerLanes]:
        # Building hundreds of environments takes longer than an iteration. Each draw sets all parameters anew.
        return {}


def _sample(space: spaces.Space[object], num_tasks: int, generator: Generator) -> Tensor:
    """Sample ``[task, *space.shape]`` uniformly."""
    if isinstance(space, spaces.Discrete):
        # In double precision, whatever the default: the values of a seed do not depend on it.
        return int(space.start) + (int(space.n) * uniform(generator, num_tasks, dtype=torch.float64)).long()
    assert isinstance(space, spaces.Box)
    dtype = torch.get_default_dtype()
    low, high = torch.tensor(space.low.tolist(), dtype=dtype), torch.tensor(space.high.tolist(), dtype=dtype)
    return low + (high - low) * uniform(generator, num_tasks, *space.shape)
