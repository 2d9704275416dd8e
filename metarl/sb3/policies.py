"""A trained run, before or after adaptation, as a policy with Stable-Baselines3's ``predict``."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from metarl import objectives
from metarl.sb3.native import Native, native
from metarl.seeding import stream
from metarl.speed import float32
from metarl.trained import Trained
from metarl.types import Learner, State, Tasks

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
    ):
        check_learner(learner)
        self.own = own
        self.learner, self.state, self.action_space, self.device = learner, state, action_space, torch.device(device)
        self._generator = stream(seed, "actions", device=self.device)

    def outputs(self, observations: Tensor) -> Tensor:
        """Return the policy's outputs ``[item, model_outputs]`` for observations ``[item, *input_shape]``."""
        with torch.no_grad(), float32(self.device):
            outputs, _ = self.learner.predict(self.state, observations.to(self.device).unsqueeze(0))
        return outputs[0]

    def predict(
        self,
        observation: Any,
        state: tuple[Array, ...] | None = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
    ) -> tuple[Array, tuple[Array, ...] | None]:
        """Return actions for one observation or a batch, and ``state`` unchanged: the policy has no memory.

        Raises ValueError for observations of another shape.
        """
        array = np.asarray(observation)
        shape = self.learner.spec.input_shape if self.own is None else self.own.observations.shape
        if array.shape[array.ndim - len(shape) :] != shape or array.ndim > len(shape) + 1:
            raise ValueError(
                f"observations have shape {array.shape} where {shape} or (n, {str(shape)[1:]} was expected"
            )
        batch = array.reshape(-1, *shape)
        read = batch if self.own is None else np.stack([self.own.seen(row) for row in batch])
        rows = torch.as_tensor(read, dtype=torch.get_default_dtype())
        outputs, kind = self.outputs(rows), self.learner.spec.kind
        chosen = objectives.mode(kind, outputs) if deterministic else objectives.sample(kind, outputs, self._generator)
        actions = self._within(chosen if self.own is None else self.own.acted(chosen))
        return (actions[0] if array.ndim == len(shape) else actions), state

    def _within(self, chosen: Tensor) -> Array:
        actions = chosen.numpy(force=True)
        if isinstance(self.action_space, spaces.Box):
            actions = np.clip(actions, self.action_space.low, self.action_space.high)
        return actions.astype(self.action_space.dtype)


def check_learner(learner: Learner) -> None:
    """Raise ValueError for a learner whose policies do not work with ``predict``."""
    if not learner.spec.control:
        raise ValueError(f"this learner has no policies: it is for {learner.spec.kind}")
    if learner.memory is not None:
        raise ValueError(
            "this policy learns from rewards while it acts, but Stable-Baselines3's predict does not pass rewards; "
            "use a learner without memory, such as maml"
        )


def state_of(trained: Trained, task: Tasks | None = None, steps: int = 0, seed: int = 0) -> State:
    """Return the learner's state for one task after ``steps`` adaptation steps, or without a task, its initial state.

    Raises:
        ValueError: several tasks, steps without a task, or no task for a policy that reads the task's descriptor.
    """
    check_learner(trained.learner)
    if task is None and steps:
        raise ValueError(f"{steps} adaptation steps need a task to adapt to")
    if task is None:
        return _of_any_task(trained)
    if len(task.descriptors) != 1:
        raise ValueError(f"one policy is for one task, not for {len(task.descriptors)}")
    if steps:
        return trained.adapt(task, steps, seed)[-1].state
    return trained.learner.begin(trained.params, task.descriptors.to(trained.device))


def _of_any_task(trained: Trained) -> State:
    """Return the initial state. Raises ValueError if the policy reads its task's descriptor."""
    # A descriptor of nan: if the outputs depend on it, they are nan too.
    spec = trained.learner.spec
    unknown = torch.full((1, spec.descriptor_size), torch.nan, device=trained.device)
    with torch.no_grad():
        state = trained.learner.begin(trained.params, unknown)
        outputs, _ = trained.learner.predict(state, torch.zeros(1, 1, *spec.input_shape, device=trained.device))
    if not torch.isfinite(outputs).all():
        raise ValueError("this policy reads its task's descriptor, so a task must be given")
    return state


def policy(
    trained: Trained, task: Tasks | None = None, steps: int = 0, seed: int = 0, own_spaces: bool = False
) -> MetaPolicy:
    """Return the policy of a run (opened with ``metarl.open_run``) after ``steps`` adaptation steps to a task.

    Get a task with, for example, ``trained.task(velocity=1.3)``. Without a task, this is the policy before adaptation.
    With ``own_spaces``, the policy of a ``GymnasiumFamily`` reads and acts in the environment's own spaces, not in the
    lanes'; for other families, the two are the same.

    Raises:
        ValueError: for the reasons of ``state_of`` and ``MetaPolicy``.
    """
    state = state_of(trained, task, steps, seed)
    family: Any = trained.family
    own = native(family, task) if own_spaces else None
    if own is not None:
        return MetaPolicy(trained.learner, state, own.actions, trained.device, seed, own)
    lanes = family.environment(1, torch.device("cpu"))
    lanes.close()
    return MetaPolicy(trained.learner, state, lanes.single_action_space, trained.device, seed)
