"""ML1, ML10 and ML45: benchmarks of meta-learning from Meta-World (arXiv 1910.10897), in its version 3."""

from dataclasses import dataclass, field
from functools import partial

import torch
from gymnasium import spaces
from torch import Generator

import metaworld
from metarl.control import ControlTasks, Pool, Sampling
from metarl.environments import LaneOptions, on_workers
from metarl.types import Spec, Split
from metarl_metaworld.kinds import KindLanes
from metarl_metaworld.manipulation import ACTION_SIZE, HORIZON, OBSERVATION_SIZE, Manipulation
from metarl_metaworld.tasks import POSITIONS, Suite, suite

SAMPLING = Sampling(episodes=10, horizon=HORIZON)


@dataclass(frozen=True)
class ML1:
    """Meta-World ML1: one manipulation task; positions of object and goal vary, the goal is hidden; 50 train, 50 test.

    The descriptor is these positions in metres (6 numbers, padded with zeros). Every lane takes 20 to 30 MB.
    """

    env: str = "reach-v3"
    """The manipulation task, by Meta-World's name, such as push-v3 or pick-place-v3."""
    seed: int = 0
    """Which positions are drawn for the 50 training tasks and the 50 test tasks."""
    sampling: Sampling = field(default=SAMPLING)
    """How episodes are sampled."""
    workers: int | None = None
    """Processes that simulate: 1 for this one, None for one on each CPU."""
    _pools: list[Pool] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.env not in metaworld.ML1.ENV_NAMES:
            raise ValueError(f"env={self.env!r}: expected one of {', '.join(sorted(metaworld.ML1.ENV_NAMES))}")
        _check_workers(self.workers)

    @property
    def spec(self) -> Spec:
        """What Meta-World asks of a policy."""
        return Spec((OBSERVATION_SIZE,), ACTION_SIZE, "continuous", POSITIONS)

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> ControlTasks:
        """Sample tasks; those of validation are among those of training."""
        return _sample(self, suite("ML1", self.env, self.seed), num_tasks, split, generator)


@dataclass(frozen=True)
class ML10:
    """Meta-World ML10: 10 kinds of manipulation to train on, 5 others at test, 50 tasks of each; the goal is hidden.

    The descriptor is the kind (one of 15) and the positions of object and goal. Kinds take turns. Every lane takes 20
    to 30 MB. With a multiple of 10 tasks (at test, 5), simulations keep to a kind: another takes long to build.
    """

    seed: int = 0
    """Which positions are drawn for the tasks."""
    sampling: Sampling = field(default=SAMPLING)
    """How episodes are sampled."""
    workers: int | None = None
    """Processes that simulate: 1 for this one, None for one on each CPU."""
    _pools: list[Pool] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_workers(self.workers)

    @property
    def spec(self) -> Spec:
        """What Meta-World asks of a policy."""
        return Spec((OBSERVATION_SIZE,), ACTION_SIZE, "continuous", 15 + POSITIONS)

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> ControlTasks:
        """Sample tasks; those of validation are among those of training."""
        return _sample(self, suite("ML10", None, self.seed), num_tasks, split, generator)


@dataclass(frozen=True)
class ML45:
    """Meta-World ML45: 45 kinds of manipulation to train on, 5 others at test, 50 tasks of each; the goal is hidden.

    The descriptor is the kind (one of 50) and the positions of object and goal. Kinds take turns. Every lane takes 20
    to 30 MB. With a multiple of 45 tasks (at test, 5), simulations keep to a kind: another takes long to build.
    """

    seed: int = 0
    """Which positions are drawn for the tasks."""
    sampling: Sampling = field(default=SAMPLING)
    """How episodes are sampled."""
    workers: int | None = None
    """Processes that simulate: 1 for this one, None for one on each CPU."""
    _pools: list[Pool] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_workers(self.workers)

    @property
    def spec(self) -> Spec:
        """What Meta-World asks of a policy."""
        return Spec((OBSERVATION_SIZE,), ACTION_SIZE, "continuous", 50 + POSITIONS)

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> ControlTasks:
        """Sample tasks; those of validation are among those of training."""
        return _sample(self, suite("ML45", None, self.seed), num_tasks, split, generator)


def _check_workers(workers: int | None) -> None:
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: expected at least 1, or None for one on each CPU")


def _sample(
    family: ML1 | ML10 | ML45, suite: Suite, num_tasks: int, split: Split, generator: Generator
) -> ControlTasks:
    if num_tasks < 1:
        raise ValueError(f"at least one task is needed, not {num_tasks}")
    chosen = suite.sample(num_tasks, split, generator)
    if not family._pools:
        spec, horizon = _lane_spec(family.spec), family.sampling.horizon
        family._pools.append(Pool(partial(_lanes, suite, spec, horizon, family.workers)))
    return ControlTasks(family.spec, {"task": chosen}, suite.descriptors(chosen), family._pools[0], family.sampling)


def _lanes(
    suite: Suite, spec: Spec, horizon: int, workers: int | None, num_envs: int, device: torch.device
) -> KindLanes:
    """Return lanes on the CPU, whatever the device."""
    tasks = spaces.Dict(task=spaces.Discrete(len(suite.tasks)))
    make, dtype = partial(Manipulation, suite.tasks), torch.empty(0).numpy().dtype.name
    kinds = [suite.kinds.index(task.env_name) for task in suite.tasks]
    lanes = on_workers(workers, LaneOptions(make, tasks, "options", spec, num_envs, horizon, dtype))
    return KindLanes(lanes, kinds)


def _lane_spec(spec: Spec) -> Spec:
    # The lanes' parameter is one number, that of the task.
    return Spec(spec.input_shape, spec.output_size, spec.kind, descriptor_size=1)
