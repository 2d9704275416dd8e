"""Tasks of control families: a batch of environments, and the episodes sampled from it.

An environment batch is a ``gymnasium.vector.VectorEnv`` of task-major lanes (lane i belongs to task i // episodes) with
``AutoresetMode.DISABLED``. Its arrays are NumPy arrays or torch tensors. A lane that has finished idles: it repeats its
last observation with reward 0 until it is reset. Task parameters are passed by name through ``reset(options={...})``,
one row per lane.

``metarl.control.rollouts`` runs the episodes.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Generator, Tensor

from metarl.control.lending import Lends, Pool
from metarl.control.memory import check_memory
from metarl.control.protocols import Parametrised, can_be_placed
from metarl.control.repeating import warn_of_other_generators
from metarl.control.rollouts import RolloutError, can_be_compiled, collect
from metarl.control.sampling import Sampling
from metarl.control.success import SuccessWatch
from metarl.environments import (
    WorkerDied,
    acted_in,
    as_array,
    composite,
    elements,
    parts_of,
    pixels_of,
    refuse_statistics,
)
from metarl.seeding import Places, stream
from metarl.selection import drawn_in_whole, overrides, rollout_in_whole, rows_of
from metarl.types import Family, Policy, Rollout, Spec, Split, Tasks, Which, places

RESTARTS = 2
"""How often the episodes of a draw are run again after a worker died: one that always dies must not go on for ever."""


@dataclass(frozen=True, eq=False)
class ControlTasks:
    """A fixed batch of control tasks; implements ``metarl.types.Environments``. Equal to itself only."""

    spec: Spec
    parameters: Mapping[str, Tensor]
    """``[task, ...]`` by name. Every lane of a task gets the task's parameters."""
    descriptors: Tensor
    """``[task, descriptor_size]``"""
    environment: Callable[[int, torch.device], VectorEnv]
    """``(num_envs, device) -> env``; called once, at the first draw. Draws borrow from a ``Pool``."""
    sampling: Sampling
    within: "Within | None" = None
    """The whole batch that these tasks were selected from, if any."""
    _own: Pool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_own", Pool(self.environment))

    def select(self, tasks: Which) -> Any:
        """Return some of the tasks, as ``ControlTasks``; they draw what they draw among all of these.

        Lanes that can be ``Placed`` run the episodes of these tasks only (what an environment computes for all lanes at
        once may then be rounded differently). With others, the episodes of all tasks are run, and those of the rest are
        left out.
        """
        if overrides(self, ControlTasks, "rollout"):
            return drawn_in_whole(self, tasks)
        chosen = places(tasks, len(self.descriptors))
        within = Within(self, chosen) if self.within is None else Within(self.within.whole, self.within.chosen[chosen])
        parameters, descriptors = rows_of(self.parameters, chosen), self.descriptors[chosen]
        return replace(self, parameters=parameters, descriptors=descriptors, within=within)

    def rollout(self, policy: Policy, generator: Generator) -> Rollout:
        """Run ``sampling.episodes`` fresh episodes of every task.

        Raises:
            RolloutError: an environment raised, or returned a wrong shape or a number that is not finite; or the
                policy's action was not finite; or workers died, also when the episodes were run again.
            ValueError: the environment fails ``check_environment``, or ``check_bounds``.
        """
        tasks, episodes = len(self.descriptors), self.sampling.episodes
        within = None if self.within is None else Places(self.within.chosen, len(self.within.whole.descriptors))
        if within is not None and not self._can_be_placed(tasks * episodes, generator.device):
            whole = replace(self.within.whole, sampling=self.sampling)  # type: ignore[union-attr]
            return rollout_in_whole(whole, within.at, policy, generator)
        rows = {name: value.repeat_interleave(episodes, 0) for name, value in self.parameters.items()}

        def run() -> Rollout:
            with self._lanes(tasks * episodes, generator.device) as env, _placed(env, within, episodes):
                check_bounds(env, policy)
                watch, horizon = SuccessWatch(env), self.sampling.horizon
                return watch.scored(collect(watch, self.spec, policy, tasks, horizon, generator, rows, within))

        return _run_again(run, generator)

    def _can_be_placed(self, number: int, device: torch.device) -> bool:
        """Return whether this many lanes can be some of a larger batch."""
        with self._lanes(number, device) as env:
            return can_be_placed(env)

    @contextmanager
    def _lanes(self, number: int, device: torch.device) -> Iterator[VectorEnv]:
        """Give lanes to one draw: no other uses them meanwhile, in whatever thread."""
        check_memory(self.spec, number, self.sampling.horizon)
        pool = self.environment if isinstance(self.environment, Lends) else self._own
        with pool.lent(number, device) as env:
            check_environment(env, number, self.spec)
            yield env


@contextmanager
def _placed(env: Any, tasks: Places | None, episodes: int) -> Iterator[None]:
    """Let lanes be those of some tasks among all, for one draw."""
    if tasks is None:
        yield
        return
    lanes = (tasks.at.unsqueeze(1) * episodes + torch.arange(episodes)).flatten()
    env.places = Places(lanes, tasks.of * episodes)
    try:
        yield
    finally:
        env.places = None


class Within(NamedTuple):
    """Some tasks of a whole batch."""

    whole: ControlTasks
    chosen: Tensor  # [task] their numbers in the whole


def _run_again(run: Callable[[], Rollout], generator: Generator) -> Rollout:
    """Run episodes; where a worker dies, run them again in new lanes, from the same draws and so with the same result.

    Raises RolloutError after RESTARTS such deaths.
    """
    drawn = generator.get_state()
    for _ in range(RESTARTS):
        try:
            return run()
        except RolloutError as error:
            if not isinstance(error.__cause__, WorkerDied):
                raise
            warnings.warn(f"{error}; its episodes are run again from their reset, in new processes", stacklevel=3)
            generator.set_state(drawn)
    return run()


def tasks_with(family: Family, parameters: Mapping[str, Any]) -> ControlTasks:
    """Return tasks of a control family with the given parameters, ``[task, ...]`` by name.

    The descriptors are the parameters, flattened, in the order of ``family.parameter_space``.

    Raises:
        ValueError: the family has no parameter space, or parameters are missing, unknown, out of range or of the wrong
            shape.
    """
    sampled = family.sample(1, "test", Generator().manual_seed(0))
    if not isinstance(family, Parametrised) or not isinstance(sampled, ControlTasks):
        raise ValueError(
            f"{type(family).__name__} is no control family with a parameter_space, so tasks cannot be given"
        )
    space = family.parameter_space
    if set(parameters) != set(space.spaces):
        raise ValueError(f"task parameters {sorted(parameters)} were given: expected {', '.join(space.spaces)}")
    rows = {
        name: torch.from_numpy(elements(name, parameters[name], one)).to(sampled.parameters[name].dtype)
        for name, one in space.spaces.items()
    }
    if len({len(values) for values in rows.values()}) > 1:
        raise ValueError("task parameters differ in their number of tasks")
    flat = [values.reshape(len(values), -1).to(sampled.descriptors.dtype) for values in rows.values()]
    return replace(sampled, parameters=rows, descriptors=torch.cat(flat, dim=1))


def check_environment(env: VectorEnv, lanes: int, spec: Spec) -> None:
    """Raise ValueError unless a vector environment has this many lanes, no automatic resets, and matches spec."""
    refuse_statistics(env)
    mode = env.metadata.get("autoreset_mode")
    if env.num_envs != lanes or mode != AutoresetMode.DISABLED:
        raise ValueError(
            f"the environment has {env.num_envs} lanes and {mode}: expected {lanes}, one for each episode of "
            "each task, and AutoresetMode.DISABLED in its metadata"
        )
    observations, actions = env.single_observation_space, env.single_action_space
    pixels = pixels_of(observations)
    told = parts_of(observations) if composite(observations) else (pixels or observations).shape
    expected = spec.observations if composite(observations) else spec.input_shape
    if (told, *acted_in(actions)) != (expected, spec.kind, spec.output_size, spec.choices):
        raise ValueError(
            f"the environment observes {observations} and acts in {actions}, which is not what {spec} says"
        )


def check_bounds(env: VectorEnv, policy: Policy) -> None:
    """Raise ValueError where policies keep within other bounds than those of the environment's actions."""
    if not policy.distribution.bounded:
        return
    low, high = policy.distribution.bounds
    space: Any = env.single_action_space
    if not (np.allclose(as_array(space.low), low) and np.allclose(as_array(space.high), high)):
        raise ValueError(
            f"policies with distribution {policy.distribution.name} keep within [{low:g}, {high:g}] in every "
            f"dimension, and the environment acts in {space}: let bounds in the family's Spec be those of its actions"
        )


def bounds_of(env: VectorEnv) -> tuple[Tensor, Tensor] | None:
    """Return the lowest and highest continuous actions of lanes, ``[size]`` each; None for choices, or without ends."""
    space: Any = env.single_action_space
    if not isinstance(space, spaces.Box) or not (space.is_bounded() and np.isfinite(as_array(space.high)).all()):
        return None
    return tuple(torch.from_numpy(as_array(end).ravel().copy()) for end in (space.low, space.high))  # type: ignore[return-value]


def action_bounds(tasks: Tasks) -> tuple[Tensor, Tensor] | None:
    """Return the lowest and highest continuous actions in tasks, ``[size]`` each; beyond them, actions are clipped.

    None for choices, for actions without ends, and for tasks that are no ``ControlTasks``, whose lanes nobody sees.
    """
    if not isinstance(tasks, ControlTasks):
        return None
    env = tasks.environment(1, torch.device("cpu"))
    try:
        return bounds_of(env)
    finally:
        env.close()


def check_tasks(family: Family, split: Split, compiled: bool = False) -> tuple[Tensor, Tensor] | None:
    """Raise ValueError before a run for a split that cannot be sampled, or environments that do not match the Spec.

    With ``compiled``, also raise it if the environment's steps cannot be compiled. Return what ``action_bounds`` does.
    """
    tasks = family.sample(1, split, stream(0, "check"))
    if not isinstance(tasks, ControlTasks):
        return None
    env = tasks.environment(1, torch.device("cpu"))
    check_environment(env, 1, family.spec)
    warn_of_other_generators(env, {name: rows[:1] for name, rows in tasks.parameters.items()}, family)
    refused, bounds = compiled and not can_be_compiled(env), bounds_of(env)
    env.close()
    if refused:
        raise ValueError(
            "compile=True: the steps of this environment are no graph (it needs an environment that is written in "
            "PyTorch and has a snapshot()), and on a CPU nothing else of control is compiled; leave it out"
        )
    return bounds
