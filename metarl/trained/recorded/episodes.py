"""The episodes of an evaluation as the environments saw them: native observations and actions, real steps only."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces

from metarl.control import ControlFamily
from metarl.environments import layout, parted
from metarl.evaluation import Evaluation
from metarl.trained.deploy.native import Native, native, scale_of, spaces_of
from metarl.trained.deploy.playing import Episode
from metarl.types import Rollout

Space = spaces.Space[Any]


class Played(NamedTuple):
    """One episode of an evaluation."""

    task: int
    """Number of its task."""
    step: int
    """How many adaptation steps the policy had taken."""
    number: int
    """Which of the task's episodes at this step it is."""
    deterministic: bool
    """Whether the policy took its most likely actions. Nothing adapted to such episodes."""
    episode: Episode
    """Observations ``[time + 1, ...]``, those after the last step included, and ``terminated`` ``[time]``."""
    truncated: np.ndarray[Any, Any]
    """``[time]`` bool. An episode that the horizon cut is truncated, too."""
    success: float | None
    """1 or 0; None where the environments do not report it."""


class Recording(NamedTuple):
    """All episodes of an evaluation, and what they have in common."""

    family: ControlFamily
    parameters: dict[str, np.ndarray[Any, Any]]
    """``[task, ...]`` by name."""
    episodes: Sequence[Played]
    observation_space: Space
    action_space: Space


def recording(found: Evaluation, family: Any) -> Recording:
    """Return the episodes of an evaluation of a family, task by task, and step by step.

    Actions are those that the environments got. Numbers that policies read in float32 come back as such, whatever the
    dtype of the environment: whole numbers, pixels and choices are exact.

    Raises:
        ValueError: the evaluation is one of labelled examples, or holds a share of its tasks only, as in a run of
            several processes; or the family has no environments.
    """
    scored = [batch for batch in found.queries if isinstance(batch, Rollout)]
    if not scored:
        raise ValueError("there are no episodes to save: this evaluation is one of labelled examples")
    if not isinstance(family, ControlFamily):
        raise ValueError(f"{type(family).__name__} has no environments, whose spaces the saved episodes are in")
    tasks = len(found.tasks.descriptors)
    if len(scored[0].rewards) != tasks:
        raise ValueError(
            f"this process holds the episodes of {len(scored[0].rewards)} of {tasks} tasks: evaluate in one process"
        )
    parameters = {name: values.numpy(force=True) for name, values in found.tasks.parameters.items()}
    own = [spaces_of(family, {name: rows[task] for name, rows in parameters.items()}) for task in range(tasks)]
    episodes = list[Played]()
    for task, (sees, acts) in enumerate(own):
        reading = _Reading(sees, acts, native(sees, acts, family.spec, scale_of(family)))
        for rollouts, deterministic in ((found.practice, False), (scored, True)):
            if deterministic and found.practice and scored[0] is found.practice[0]:
                continue  # policies were scored in the episodes that they adapt to
            for step, rollout in enumerate(rollouts):
                episodes += reading.episodes(rollout.select([task]), task, step, deterministic)
    return Recording(family, parameters, episodes, own[0][0], _hull([acts for _, acts in own]))


def places_by_step(keys: Iterable[tuple[int, int, bool]], task: int | None, deterministic: bool) -> list[list[int]]:
    """Return which of the saved episodes are of one task: a list of places for each adaptation step.

    ``keys`` are the task, the step and whether it is ``deterministic`` of each episode; see ``load_episodes``. Raises
    ValueError where no task is named and there are several, and where there are no such episodes.
    """
    found = list(keys)
    tasks = sorted({one for one, _, _ in found})
    if task is None and len(tasks) > 1:
        raise ValueError(f"it holds the episodes of {len(tasks)} tasks, {tasks[0]} to {tasks[-1]}: name one")
    chosen = tasks[0] if task is None else task
    groups: dict[int, list[int]] = {}
    for place, (of, step, kind) in enumerate(found):
        if (of, kind) == (chosen, deterministic):
            groups.setdefault(step, []).append(place)
    if not groups:
        kind_of = "episodes without noise" if deterministic else "episodes"
        raise ValueError(f"it holds no {kind_of} of task {chosen}: expected one of {tasks[0]} to {tasks[-1]}")
    return [groups[step] for step in sorted(groups)]


def _hull(acts: Sequence[Any]) -> Any:
    """Return a space that holds the actions of all tasks, whose bounds may differ."""
    if not isinstance(acts[0], spaces.Box):
        return acts[0]
    low, high = np.min([one.low for one in acts], 0), np.max([one.high for one in acts], 0)
    return spaces.Box(low, high, dtype=acts[0].dtype.type)


class _Reading(NamedTuple):
    sees: Space
    acts: Space
    own: Native

    def episodes(self, rollout: Rollout, task: int, step: int, deterministic: bool) -> Iterator[Played]:
        """Yield the episodes of a rollout of one task."""
        lengths = rollout.mask[0].sum(-1).long().tolist()
        for number, length in enumerate(lengths):
            steps = {name: getattr(rollout, name)[0, number, :length] for name in _STEPS}
            seen = torch.cat([steps["observations"], rollout.last_observations[0, number : number + 1]])
            terminated, truncated = (steps[name].numpy(force=True) for name in ("terminated", "truncated"))
            truncated = truncated | (np.arange(length) == length - 1) & ~terminated
            episode = Episode(
                observations=self._native(seen.numpy(force=True)),
                actions=self.own.act(steps["actions"].cpu()).numpy().astype(self.acts.dtype),
                rewards=steps["rewards"].numpy(force=True),
                terminated=terminated,
                # Nobody knows those of the most likely actions.
                log_probs=np.full(length, np.nan, np.float32)
                if deterministic
                else steps["log_probs"].numpy(force=True),
                policy_actions=steps["actions"].numpy(force=True),
            )
            success = None if rollout.success is None else float(rollout.success[0, number])
            yield Played(task, step, number, deterministic, episode, truncated, success)

    def _native(self, seen: np.ndarray[Any, Any]) -> Any:
        """Return observations ``[time, *input_shape]`` of policies as the environment's own."""
        return parted(self.sees, seen) if self.own.observed == "flat" else layout(self.sees).unread(seen)


_STEPS = ("observations", "actions", "rewards", "terminated", "truncated", "log_probs")
