"""Gathering what one meta-iteration learns from: adapt to every task, and keep the data that it took."""

from collections.abc import Iterator, Mapping

import torch
from torch import Generator

from metarl import objectives
from metarl.types import Batch, Experience, Learner, Params, Rollout, State, Tasks


def gather(
    learner: Learner, params: Params, tasks: Tasks, draws: Iterator[Generator]
) -> tuple[Experience, dict[str, float]]:
    """Adapt to every task without keeping graphs, and return the data it took with the mean scores on the way.

    Control draws fresh episodes before every adaptation, with the policies that are about to be adapted; labelled
    examples use one support set for all of them. Every draw takes the next generator of ``draws``.
    """
    generator = next(draws)
    descriptors = tasks.descriptors.to(generator.device)
    supports: list[Batch] = []
    with torch.no_grad():
        state = learner.begin(params, descriptors)
        for step in range(learner.adaptations):
            if learner.spec.control or step == 0:
                generator = next(draws) if step else generator
                supports.append(tasks.draw(learner, state, "support", generator))
            else:
                supports.append(supports[0])
            state = learner.adapt(state, supports[-1])
        query = tasks.draw(learner, state, "query", next(draws))
        experience = Experience(descriptors, tuple(supports), query)
        return experience, _mean_scores(learner, state, experience)


def _mean_scores(learner: Learner, state: State, experience: Experience) -> dict[str, float]:
    """Mean over tasks of the scores before each adaptation (control only) and after the last one."""
    kind, query, last = learner.spec.kind, experience.query, learner.adaptations
    if isinstance(query, Rollout):
        batches = enumerate([*experience.supports, query])
        named = {
            f"{name}/step_{step}": value
            for step, batch in batches
            for name, value in objectives.scores(kind, batch).items()
        }
    else:
        outputs, _ = learner.predict(state, query.inputs)
        named = {f"{name}/step_{last}": value for name, value in objectives.scores(kind, query, outputs).items()}
    means = torch.stack([value.mean() for value in named.values()]).tolist()
    return dict(zip(named, means, strict=True))


def training_score(row: Mapping[str, float]) -> float:
    """The number by which the best checkpoint is chosen: the return, or minus the loss, after the last adaptation."""
    returns = [value for name, value in row.items() if name.startswith("return/step_")]
    return returns[-1] if returns else -[value for name, value in row.items() if name.startswith("loss/step_")][-1]
