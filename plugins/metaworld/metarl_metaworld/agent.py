"""A trained meta-learner as the agent of Meta-World's own evaluation, ``metalearning_evaluation``."""

from typing import Any

import numpy as np
import torch
from metaworld.evaluation import Timestep
from torch import Tensor

from metarl.advantages import learned
from metarl.environments import Array
from metarl.seeding import stream
from metarl.trained import Trained
from metarl.types import Rollout, State


class MetaLearningAgent:
    """Adapts a trained policy to every environment of a Gymnasium vector environment at once.

    It implements ``metaworld.evaluation.MetaLearningAgent``: actions are sampled while data are collected; in
    evaluation they are the means of the adapted policies.

    Raises:
        ValueError: a run whose policy has a memory, or is told of its task: the protocol has no place for that.
    """

    def __init__(self, trained: Trained, seed: int = 0):
        self._learner, self._params, self._device = trained.learner, trained.params, trained.device
        if self._learner.memory is not None or self._learner.spec.kind != "continuous":
            raise ValueError("Meta-World's protocol needs a policy of continuous actions that adapts by inner steps")
        self._generator = stream(seed, "metaworld/actions", device=self._device)
        self._state: State | None = None
        self._seen: list[Timestep] = []

    def init(self) -> None:
        """Forget what was learnt of the tasks."""
        self._state, self._seen = None, []

    def reset(self, env_mask: Array) -> None:
        """Nothing is remembered within an episode."""

    def adapt_action(self, observations: Array) -> tuple[Array, dict[str, Array]]:
        """Sample actions ``[env, action]``; what was sampled before it was clipped is told besides."""
        outputs = self._outputs(observations)
        sampled = self._learner.spec.distribution.sample(outputs, self._generator)
        log_probs = self._learner.spec.distribution.log_prob(outputs, sampled)
        told = {"sampled": sampled.cpu().numpy(), "log_probs": log_probs.cpu().numpy()}
        return _clipped(sampled), told

    def eval_action(self, observations: Array) -> Array:
        """Return the means of the policies ``[env, action]``."""
        return _clipped(self._learner.spec.distribution.mode(self._outputs(observations)))

    def step(self, timestep: Timestep) -> None:
        """Remember a step of all environments, to adapt to it."""
        self._seen.append(timestep)

    def adapt(self) -> None:
        """Take one adaptation step on the episodes since the last one.

        Raises:
            ValueError: the environments' episodes did not end together, as Meta-World's do.
        """
        with torch.no_grad():
            self._state = learned(self._learner, self._state, self._rollout())
        self._seen = []

    def _outputs(self, observations: Array) -> Tensor:
        """Return what the policies say, ``[env, 2 * action]``."""
        seen = self._tensor(observations).unsqueeze(1)
        with torch.no_grad():
            if self._state is None:
                nothing = seen.new_zeros(len(seen), self._learner.spec.descriptor_size)
                self._state = self._learner.begin(self._params, nothing)
            return self._learner.predict(self._state, seen)[0].squeeze(1)

    def _rollout(self) -> Rollout:
        """Cut what was seen into episodes, ``[env, episode, time, ...]``."""
        ended = np.array([step.terminated | step.truncated for step in self._seen])
        last = np.flatnonzero(ended[:, 0])
        lengths = np.diff(last, prepend=-1)
        if (ended != ended[:, :1]).any() or not len(lengths) or (lengths != lengths[0]).any():
            raise ValueError("episodes end at different steps: expected Meta-World's, which all have the same length")
        seen = self._seen[: last[-1] + 1]

        def episodes(values: list[Any]) -> Tensor:
            stacked = self._tensor(np.stack(values, axis=1))
            return stacked.reshape(len(stacked), len(lengths), lengths[0], *stacked.shape[2:])

        observations = episodes([step.observation for step in seen])
        rewards = episodes([step.reward for step in seen])
        actions = episodes([step.aux_policy_outputs["sampled"] for step in seen])
        log_probs = episodes([step.aux_policy_outputs["log_probs"] for step in seen])
        # Nothing lies beyond the end of an episode, so what was seen there does not matter.
        never = torch.zeros_like(rewards, dtype=torch.bool)
        return Rollout(
            observations=observations,
            last_observations=observations[:, :, -1],
            actions=actions,
            log_probs=log_probs,
            rewards=rewards,
            terminated=never,
            truncated=never,
            mask=torch.ones_like(rewards),
        )

    def _tensor(self, values: Array) -> Tensor:
        return torch.as_tensor(values, dtype=torch.get_default_dtype(), device=self._device)


def _clipped(actions: Tensor) -> Array:
    return actions.clamp(-1, 1).cpu().numpy()
