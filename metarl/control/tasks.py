"""Tasks of control families: a batch of environments, and the episodes sampled from it.

An environment batch is a ``gymnasium.vector.VectorEnv`` of task-major lanes (lane i belongs to task i // episodes) with
``AutoresetMode.DISABLED``. Its arrays are NumPy arrays or torch tensors. A lane that has finished idles: it repeats its
last observation with reward 0 until it is reset. Task parameters are passed by name through ``reset(options={...})``,
one row per lane.

``metarl.control.rollouts`` runs the episodes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Generator, Tensor

from metarl.control.protocols import Parametrised
from metarl.control.rollouts import can_be_compiled, collect
from metarl.control.sampling import Sampling
from metarl.control.success import SuccessWatch
from metarl.seeding import stream
from metarl.types import Family, Policy, Rollout, Spec, Split


@dataclass(frozen=True, eq=False)
class ControlTasks:
    """A fixed batch of control tasks; implements ``metarl.types.Environments``. Equal to itself only."""

    spec: Spec
    parameters: Mapping[str, Tensor]
    """``[task, ...]`` by name. Every lane of a task gets the task's parameters."""
    descriptors: Tensor
    """``[task, descriptor_size]``"""
    environment: Callable[[int, torch.device], VectorEnv]
    """``(num_envs, device) -> env``; called once, at the first draw."""
    sampling: Sampling
    _made: list[VectorEnv] = field(default_factory=list, init=False, repr=False, compare=False)

    def rollout(self, policy: Policy, generator: Generator) -> Rollout:
        """Run ``sampling.episodes`` fresh episodes of every task.

        Raises:
            RolloutError: an environment raised, or returned a wrong shape or a number that is not finite; or the
                policy's action was not finite.
            ValueError: the environment fails ``check_environment``.
        """
        tasks, episodes = len(self.descriptors), self.sampling.episodes
        if not self._made:
            env = self.environment(tasks * episodes, generator.device)
            check_environment(env, tasks * episodes, self.spec)
            self._made.append(env)
        lanes = {name: value.repeat_interleave(episodes, 0) for name, value in self.parameters.items()}
        watch = SuccessWatch(self._made[0])
        return watch.scored(collect(watch, self.spec, policy, tasks, self.sampling.horizon, generator, lanes))


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
    rows = {name: _rows(name, parameters[name], one, sampled.parameters[name]) for name, one in space.spaces.items()}
    if len({len(values) for values in rows.values()}) > 1:
        raise ValueError("task parameters differ in their number of tasks")
    flat = [values.reshape(len(values), -1).to(sampled.descriptors.dtype) for values in rows.values()]
    return replace(sampled, parameters=rows, descriptors=torch.cat(flat, dim=1))


def _rows(name: str, given: Any, space: spaces.Space[Any], like: Tensor) -> Tensor:
    """Return one task parameter ``[task, ...]``. Raises ValueError for values outside its space."""
    rows = torch.as_tensor(given, dtype=like.dtype)
    low, high = _ends(space)
    inside = rows.shape[1:] == space.shape and bool(((rows >= low) & (rows <= high)).all())
    if rows.ndim == 0 or not inside:
        raise ValueError(f"the task parameter {name} is {given}: expected, for each task, an element of {space}")
    return rows


def _ends(space: spaces.Space[Any]) -> tuple[Tensor, Tensor]:
    if isinstance(space, spaces.Box):
        return torch.as_tensor(space.low), torch.as_tensor(space.high)
    assert isinstance(space, spaces.Discrete)
    return torch.tensor(int(space.start)), torch.tensor(int(space.start + space.n - 1))


def check_environment(env: VectorEnv, lanes: int, spec: Spec) -> None:
    """Raise ValueError unless a vector environment has this many lanes, no automatic resets, and matches spec."""
    mode = env.metadata.get("autoreset_mode")
    if env.num_envs != lanes or mode != AutoresetMode.DISABLED:
        raise ValueError(
            f"the environment has {env.num_envs} lanes and {mode}: expected {lanes}, one for each episode of "
            "each task, and AutoresetMode.DISABLED in its metadata"
        )
    observations, actions = env.single_observation_space, env.single_action_space
    kind = {spaces.Discrete: "discrete", spaces.Box: "continuous"}.get(type(actions), type(actions).__name__)
    size = int(actions.n) if isinstance(actions, spaces.Discrete) else math.prod(actions.shape or ())
    if (observations.shape, size, kind) != (spec.input_shape, spec.output_size, spec.kind):
        raise ValueError(
            f"the environment observes {observations} and acts in {actions}, which is not what {spec} says"
        )


def check_tasks(family: Family, split: Split, compiled: bool = False) -> None:
    """Raise ValueError before a run for a split that cannot be sampled, or environments that do not match the Spec.

    With ``compiled``, also raise it if the environment's steps cannot be compiled.
    """
    tasks = family.sample(1, split, stream(0, "check"))
    if isinstance(tasks, ControlTasks):
        env = tasks.environment(1, torch.device("cpu"))
        check_environment(env, 1, family.spec)
        refused = compiled and not can_be_compiled(env)
        env.close()
        if refused:
            raise ValueError(
                "compile=True: the steps of this environment are no graph (it needs an environment that is written in "
                "PyTorch and has a snapshot()), and on a CPU nothing else of control is compiled; leave it out"
            )
