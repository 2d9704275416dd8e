"""Gathering what one meta-iteration learns from."""

from collections.abc import Iterator, Mapping

import torch
from torch import Generator, Tensor

from metarl import objectives
from metarl.devices import send
from metarl.types import Batch, Experience, Learner, Params, Tasks


def gather(
    learner: Learner, params: Params, tasks: Tasks, draws: Iterator[Generator], progress: float = 0.0
) -> tuple[Experience, dict[str, Tensor]]:
    """Draw what one meta-iteration learns from, and the mean returns on the way (control only).

    Control draws fresh episodes before every adaptation, with the policies that are about to be adapted; labelled
    examples use one support set for all of them. Every draw takes the next generator of ``draws``.
    """
    with torch.no_grad():
        gathered = _rollouts if learner.spec.control else _examples
        return gathered(learner, params, tasks, draws, progress)


def _examples(
    learner: Learner, params: Params, tasks: Tasks, draws: Iterator[Generator], progress: float
) -> tuple[Experience, dict[str, Tensor]]:
    """Nothing is adapted here: what is drawn does not depend on it, and the meta-loss tells the scores."""
    first = next(draws)
    descriptors = send(tasks.descriptors, first.device)
    state = learner.begin(params, descriptors)
    support = tasks.draw(learner, state, "support", first)
    query = tasks.draw(learner, state, "query", next(draws))
    return Experience(descriptors, (support,) * learner.adaptations, query, progress), {}


def _rollouts(
    learner: Learner, params: Params, tasks: Tasks, draws: Iterator[Generator], progress: float
) -> tuple[Experience, dict[str, Tensor]]:
    generator = next(draws)
    descriptors = send(tasks.descriptors, generator.device)
    state, rollouts = learner.begin(params, descriptors), list[Batch]()
    for _ in range(learner.adaptations):
        rollouts.append(tasks.draw(learner, state, "support", generator))
        state, generator = learner.adapt(state, rollouts[-1]), next(draws)
    query = tasks.draw(learner, state, "query", generator)
    scores: dict[str, Tensor] = {}
    for step, rollout in enumerate([*rollouts, query]):
        scores |= objectives.mean_scores(learner.spec.kind, rollout, None, step)
    experience = Experience(descriptors, tuple(rollouts), query, progress)
    return experience if learner.prepare is None else learner.prepare(experience), scores


def training_score(row: Mapping[str, float]) -> float:
    """The number by which the best checkpoint is chosen: the return, or minus the loss, after the last adaptation."""
    returns = [value for name, value in row.items() if name.startswith("return/step_")]
    return returns[-1] if returns else -[value for name, value in row.items() if name.startswith("loss/step_")][-1]
