"""Adaptation to held-out tasks: what a learner is after 0, 1, ..., k steps."""

from collections.abc import Callable
from typing import NamedTuple, get_args

import torch
from torch import Generator

from metarl.advantages import learned
from metarl.seeding import stream
from metarl.speed import float32, send, usual_modes
from metarl.types import (
    Batch,
    Examples,
    Learner,
    Params,
    Role,
    Rollout,
    State,
    Tasks,
    each_tensor,
    environments_of,
    labelled_tasks,
    policy_of,
    rollout_of,
)

Watch = Callable[[float], None]
"""Called with the share of the work that is done."""


class Adapted(NamedTuple):
    """A learner's state after some adaptation steps, and what shows how good it is."""

    state: State
    batch: Batch
    """Episodes of the policies in that state; for labelled examples, the query set."""

    @property
    def rollout(self) -> Rollout:
        """The episodes. Raises ValueError for labelled examples."""
        return rollout_of(self.batch)

    @property
    def examples(self) -> Examples:
        """The query set. Raises ValueError for policies."""
        if not isinstance(self.batch, Examples):
            raise ValueError("policies have episodes and no query set: read rollout")
        return self.batch


@usual_modes()
def adapt(
    learner: Learner,
    params: Params,
    tasks: Tasks | Examples,
    steps: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Watch | None = None,
) -> list[Adapted]:
    """Adapt to tasks. Return what the learner is after 0, 1, ..., ``steps`` steps.

    Policies get fresh episodes for every step. With labelled examples, every step adapts to the tasks' support set, and
    the query set comes along, both drawn as ``evaluate`` does; examples ``[task, item, ...]`` of one's own, instead of
    tasks, are adapted to as they are, and are their own query set. While policies adapt, ``progress`` is called with
    the share of the work that is done.

    Raises:
        ValueError: ``steps`` is negative, examples are given to policies, or a learner of examples that reads the
            tasks' descriptors gets none.
    """
    if steps < 0:
        raise ValueError(f"adapting needs 0 steps or more, not {steps} steps")
    device = torch.device(device)
    with torch.no_grad(), float32(device):
        if not learner.spec.control:
            return _fitted(learner, params, tasks, steps, seed, device)
        if isinstance(tasks, Examples):
            raise ValueError(f"policies adapt to tasks in which they act, not to examples: {learner.spec}")
        environments = environments_of(tasks)
        state = learner.begin(params, send(tasks.descriptors, device))
        adapted: list[Adapted] = []
        for step in range(steps + 1):
            state = learned(learner, adapted[-1].state, adapted[-1].rollout) if adapted else state
            generator = stream(seed, "evaluation", step, device=device)
            adapted.append(Adapted(state, environments.rollout(policy_of(learner, state), generator)))
            if progress is not None:
                progress((step + 1) / (steps + 1))
    return adapted


def _fitted(
    learner: Learner, params: Params, tasks: Tasks | Examples, steps: int, seed: int, device: torch.device
) -> list[Adapted]:
    if isinstance(tasks, Examples):
        support = query = each_tensor(lambda values: send(values, device), tasks)
        descriptors = torch.full((len(support.inputs), learner.spec.descriptor_size), torch.nan, device=device)
    else:
        descriptors = send(tasks.descriptors, device)
        support, query = support_and_query(learner, tasks, seed, device)
    adapted = [Adapted(learner.begin(params, descriptors), query)]
    for _ in range(steps):
        adapted.append(Adapted(learner.adapt(adapted[-1].state, support), query))
    # Descriptors of nan: if the outputs depend on them, they are nan, too.
    if isinstance(tasks, Examples) and not learner.predict(adapted[-1].state, query.inputs)[0].isfinite().all():
        raise ValueError("this learner reads its tasks' descriptors, or diverges: give it tasks instead of examples")
    return adapted


def support_and_query(learner: Learner, tasks: Tasks, seed: int, device: torch.device) -> tuple[Examples, Examples]:
    """Draw the examples of an evaluation. Raises ValueError for tasks that draw none."""
    labelled = labelled_tasks(tasks)
    support, query = (_checked(learner, labelled.draw(role, stream_of(seed, role, device))) for role in get_args(Role))
    return support, query


def stream_of(seed: int, role: Role, device: torch.device) -> Generator:
    """Return the generator from which an evaluation draws the examples of a role."""
    return stream(seed, "evaluation", get_args(Role).index(role), device=device)


def _checked(learner: Learner, batch: Batch) -> Examples:
    if not isinstance(batch, Examples):
        raise ValueError(f"a {learner.spec.kind} family must draw Examples, not {type(batch).__name__}")
    return batch
