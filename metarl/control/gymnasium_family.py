"""What makes a task plugin short.

A control family from any Gymnasium environment, classification of any labelled tensor, regression of any function or
table.
"""

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
from metarl.types import Spec, Split


@dataclass(frozen=True)
class GymnasiumFamily:
    """Any Gymnasium environment as a control family: its tasks differ in parameters that are sampled from ranges.

    ``GymnasiumFamily("Pendulum-v1", spaces.Dict(g=spaces.Box(5.0, 15.0)))`` is pendulums under gravities from 5 to
    15 m/s^2. A Box is sampled uniformly, a Discrete space with equal chances; a Box of one number reaches the
    environment as a float, a larger one as an array, a Discrete space as an int. The descriptor is the parameters as
    they are, flattened, in the order of ``parameters``.

    The policy reads Box observations as they are and Discrete ones one-hot. It acts in [-1, 1], which is stretched over
    the bounds of a Box action space (0 is the middle) and clipped beyond, or chooses among Discrete actions.

    Raises:
        ValueError: parameters that cannot be sampled, an unknown way to apply them; from ``spec``, an environment that
            cannot be made or whose spaces no policy serves.
    """

    env: Maker
    """Id of a registered environment, or a function that makes one."""
    parameters: spaces.Dict
    """What tasks differ in, and the range of each: bounded Boxes of floats and Discrete spaces by name."""
    apply: Apply = "keyword"
    """How parameters reach an environment: "keyword" of its constructor (it is made anew for every task, which is
    slow), "options" of its reset, "attribute" of ``env.unwrapped``, or a function ``(env, **parameters)`` called before
    every reset, which must set and not scale: the environment may have had other parameters before."""
    sampling: Sampling = field(default_factory=Sampling)
    """How episodes are sampled."""
    workers: int | None = 1
    """Processes that the environments run in, each with its share of them: 1 for this one, None for as many as there
    are CPUs. No result depends on it. It pays where a step takes longer than some tens of microseconds."""

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
        """The ranges, under the name that every control family has for them."""
        return self.parameters

    @property
    def splits_share_tasks(self) -> bool:
        """Whether tasks can be counted: then none is held out."""
        return all(isinstance(space, spaces.Discrete) for space in self.parameters.spaces.values())

    @cached_property
    def spec(self) -> Spec:
        """What an environment asks of a policy: one is made, with parameters in the middle of their ranges."""
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
        named = self.parameters.spaces.items()
        parameters = {name: _sample(space, num_tasks, generator) for name, space in named}
        numbers = [values.reshape(num_tasks, -1).to(torch.get_default_dtype()) for values in parameters.values()]
        return ControlTasks(self.spec, parameters, torch.cat(numbers, dim=1), self.environment, self.sampling)

    def environment(self, num_envs: int, device: torch.device) -> Lanes | WorkerLanes:
        """Return lanes on the CPU, whatever the device; they are kept, and serve all tasks of this family."""
        if num_envs not in self._kept or self._kept[num_envs].closed:
            dtype = torch.empty(0).numpy().dtype.name
            made = self.env, self.parameters, self.apply, self.spec, num_envs, self.sampling.horizon, dtype
            self._kept[num_envs] = on_workers(self.workers, LaneOptions(*made))
        return self._kept[num_envs]

    def single(self, parameters: Mapping[str, Any], render_mode: str | None = None) -> SingleEnv:
        """Return one environment of one task, seen and acted in as the lanes are."""
        return SingleEnv(self.env, self.parameters, self.apply, self.spec, parameters, render_mode)

    @cached_property
    def _kept(self) -> dict[int, Lanes | WorkerLanes]:
        # Building hundreds of environments takes longer than an iteration, and every draw sets all their parameters.
        return {}


def _sample(space: spaces.Space[object], num_tasks: int, generator: Generator) -> Tensor:
    """Sample ``[task, *space.shape]`` uniformly."""
    if isinstance(space, spaces.Discrete):
        return int(space.start) + torch.randint(int(space.n), (num_tasks,), generator=generator)
    assert isinstance(space, spaces.Box)
    low, high = (torch.tensor(end.tolist(), dtype=torch.get_default_dtype()) for end in (space.low, space.high))
    return low + (high - low) * torch.rand(num_tasks, *space.shape, generator=generator)
