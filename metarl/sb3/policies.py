"""A trained run, before or after adaptation, as a policy with Stable-Baselines3's ``predict``."""

from typing import Any

import cloudpickle
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from metarl.environments import Layout, composite, flat, pixels_of
from metarl.sb3.native import Native, native
from metarl.seeding import stream
from metarl.speed import float32
from metarl.trained import Trained, check_policies
from metarl.types import Learner, State, Tasks, outputs_at

Array = np.ndarray[Any, Any]


class MetaPolicy:
    """A policy for one task that works with Stable-Baselines3's ``evaluate_policy``, video recorders and callbacks.

    Actions are in the lanes' action space. For registered environments, this is the environment's action space. For a
    ``GymnasiumFamily``, it is [-1, 1] whatever the environment's is, so use ``TaskVecEnv(family)`` there, or ``own``.

    Args:
        learner: The learner that the policy belongs to.
        state: The learner's state for exactly one task.
        action_space: Box actions are clipped to it.
        device: Device of the state.
        seed: Seed of sampled actions.
        own: The environment's own spaces, to read and act in those.
        pixels: How lanes show images, if they do.

    Raises:
        ValueError: the learner has no policies, or its policies need rewards as inputs.
    """

    def __init__(
        self,
        learner: Learner,
        state: State,
        action_space: spaces.Space[Any],
        device: torch.device | str = "cpu",
        seed: int = 0,
        own: Native | None = None,
        pixels: Layout | None = None,
    ):
        check_policies(learner)
        self.own, self.pixels = own, pixels
        self.learner, self.state, self.action_space, self.device = learner, state, action_space, torch.device(device)
        self._generator = stream(seed, "actions", device=self.device)

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        """Pickle by value: a learner's functions are closures. The copy goes on with the same random numbers."""
        return _again, (cloudpickle.dumps(vars(self) | {"_generator": self._generator.get_state()}),)

    def outputs(self, observations: Tensor) -> Tensor:
        """Return the policy's outputs ``[item, model_outputs]`` for observations ``[item, *input_shape]``."""
        with torch.no_grad(), float32(self.device):
            return outputs_at(self.learner, self.state, observations.to(self.device))

    def predict(
        self,
        observation: Any,
        state: tuple[Array, ...] | None = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
    ) -> tuple[Array, tuple[Array, ...] | None]:
        """Return actions for one observation or a batch, and ``state`` unchanged: the policy has no memory.

        Where the environment has Dict or Tuple observations, it may be given those, or the vectors of lanes.

        Raises ValueError for observations of another shape.
        """
        rows, one = self._read(observation)
        outputs, distribution = self.outputs(rows), self.learner.spec.distribution
        chosen = distribution.mode(outputs) if deterministic else distribution.sample(outputs, self._generator)
        actions = self._within(chosen if self.own is None else self.own.acted(chosen))
        return (actions[0] if one else actions), state

    def _read(self, observation: Any) -> tuple[Tensor, bool]:
        """Return observations as the policy reads them, ``[n, *input_shape]``, and whether it is only one."""
        spec = self.learner.spec
        if spec.observations and composite(observation):
            array, shape = flat(spec.observations, observation), spec.input_shape
            if not np.isfinite(array).all():
                raise ValueError("observations are not finite")
        else:
            array = np.asarray(observation)
            shape = spec.input_shape if self.own is None or spec.observations else self.own.observations.shape
            shape = shape if self.pixels is None else self.pixels.given
        if array.shape[array.ndim - len(shape) :] != shape or array.ndim > len(shape) + 1:
            raise ValueError(
                f"observations have shape {array.shape} where {shape} or (n, {str(shape)[1:]} was expected"
            )
        batch = array.reshape(-1, *shape)
        raw = self.own is not None and not spec.observations
        read = np.stack([self.own.seen(row) for row in batch]) if self.own is not None and raw else batch
        read = read if self.pixels is None else self.pixels.pixels(read)
        return torch.as_tensor(read, dtype=torch.get_default_dtype()), array.ndim == len(shape)

    def _within(self, chosen: Tensor) -> Array:
        actions = chosen.numpy(force=True)
        if isinstance(self.action_space, spaces.Box):
            actions = np.clip(actions, self.action_space.low, self.action_space.high)
        return actions.astype(self.action_space.dtype)


def _again(pickled: bytes) -> MetaPolicy:
    fields = cloudpickle.loads(pickled)
    generator = torch.Generator(fields["device"])
    generator.set_state(fields["_generator"])
    made = MetaPolicy.__new__(MetaPolicy)
    vars(made).update(fields | {"_generator": generator})
    return made


def policy(
    trained: Trained, task: Tasks | None = None, steps: int = 0, seed: int = 0, own_spaces: bool = False
) -> MetaPolicy:
    """Return the policy of a run (opened with ``metarl.open_run``) after ``steps`` adaptation steps to a task.

    Get a task with, for example, ``trained.task(velocity=1.3)``. Without a task, this is the policy before adaptation.
    With ``own_spaces``, the policy of a ``GymnasiumFamily`` reads and acts in the environment's own spaces, not in the
    lanes'; for other families, the two are the same.

    Raises:
        ValueError: for the reasons of ``Trained.state`` and ``MetaPolicy``.
    """
    state = trained.state(task, steps, seed)
    family: Any = trained.family
    own = native(family, task) if own_spaces else None
    if own is not None:
        return MetaPolicy(trained.learner, state, own.actions, trained.device, seed, own)
    lanes = family.environment(1, torch.device("cpu"))
    lanes.close()
    pixels = pixels_of(lanes.single_observation_space)
    return MetaPolicy(trained.learner, state, lanes.single_action_space, trained.device, seed, pixels=pixels)
