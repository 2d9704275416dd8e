"""What environments tell in their infos, collected along with a rollout: success, and any numbers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv, VectorWrapper
from torch import Generator, Tensor

from metarl.control.protocols import Snapshots, TellsNumbers
from metarl.environments import MOST_TOLD, SUCCESS, flags
from metarl.types import Rollout


class SuccessWatch(VectorWrapper):  # no generic class before Gymnasium 1.4
    """Passes everything on, and remembers which lanes reported success at any step, and the numbers in infos.

    A lane that has finished idles and so reports nothing new.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self.succeeded: Tensor | None = None
        """``[lane]``; None until some lane reports success or failure."""
        self.told: dict[str, tuple[Any, Any]] = {}
        """Sums and counts ``[lane]`` of the numbers in infos, where the lanes do not add them up themselves."""
        # A snapshot does not hold them: steps that are compiled tell none.
        self._counts = not isinstance(env.unwrapped, TellsNumbers | Snapshots)
        self._running = np.ones(env.num_envs, dtype=bool) if self._counts else np.ones(0, dtype=bool)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environment."""
        outcome = self.env.step(actions)
        info = outcome[4]
        name = next((name for name in SUCCESS if name in info), None)
        if name is not None:
            now = _succeeded(name, info)
            self.succeeded = now if self.succeeded is None else self.succeeded | now
        if self._counts:
            self._add(info, self._running)
            ends = [_array(flags) for flags in outcome[2:4] if isinstance(flags, np.ndarray | Tensor)]
            self._running = self._running & ~np.logical_or.reduce(ends) if ends else self._running
        return outcome

    def _add(self, info: Mapping[str, Any], running: Any) -> None:
        for name, values in info.items():
            if not isinstance(name, str) or name.startswith("_") or name in SUCCESS:
                continue
            numbers = _numbers(values, self.num_envs)
            if numbers is None or (name not in self.told and len(self.told) >= MOST_TOLD):
                continue
            known = running & np.asarray(_array(info.get(f"_{name}", True)), dtype=bool)
            sums, counts = self.told.get(name, (0.0, 0.0))
            self.told[name] = sums + np.where(known, numbers, 0.0), counts + known

    @property
    def generator(self) -> Generator:
        """The random generator of the environment's steps. Raises AttributeError if the environment has none."""
        inner: Any = self.env
        generator: Generator = inner.generator
        return generator

    def snapshot(self) -> tuple[Any, ...] | None:
        """Return all state that a step reads and changes, as tensors; None if the environment offers no snapshot."""
        # Do not look through another wrapper in between: it may have state of its own.
        return (self.env.snapshot(), self.succeeded) if isinstance(self.env, Snapshots) else None

    def restore(self, snapshot: tuple[Any, ...]) -> None:
        """Continue from a snapshot."""
        inner: Any = self.env
        inner.restore(snapshot[0])
        self.succeeded = snapshot[1]

    def scored(self, rollout: Rollout) -> Rollout:
        """Return a rollout that was collected from this environment, with what each episode has told."""
        lead = rollout.rewards.shape[:2]
        if self.succeeded is not None:
            rollout = replace(rollout, success=self.succeeded.to(rollout.rewards).reshape(lead))
        inner: Any = self.env.unwrapped
        told: Mapping[str, tuple[Any, Any]] = inner.info_numbers() if isinstance(inner, TellsNumbers) else self.told
        means = {
            " ".join(name.split()): torch.from_numpy(sums / counts).to(rollout.rewards).reshape(lead)
            for name, (sums, counts) in told.items()
            if counts.min() > 0
        }
        finite = {name: values for name, values in means.items() if values.isfinite().all()}
        return replace(rollout, measures=finite) if finite else rollout


def _array(values: Any) -> Any:
    return values.cpu().numpy() if isinstance(values, Tensor) else values


def _numbers(values: Any, lanes: int) -> Any:
    """Return numbers ``[lane]`` as an array of floats; None for anything else."""
    array = _array(values)
    if not isinstance(array, np.ndarray) or array.shape != (lanes,) or array.dtype.kind not in "biuf":
        return None
    return array.astype(np.float64)


def _succeeded(name: str, info: dict[str, Any]) -> Tensor:
    """Return which lanes report success, ``[lane]``. Raises ValueError for other values than True, False, 1 and 0."""
    told = info[name]
    values = told if isinstance(told, Tensor) else np.array(told)
    reported = info.get(f"_{name}")
    if reported is not None and not isinstance(values, Tensor):
        values = np.where(np.asarray(reported), values, False)  # what lanes that do not report hold means nothing
    found = flags(f"info[{name!r}]", values)
    return found if isinstance(found, Tensor) else torch.from_numpy(found)
