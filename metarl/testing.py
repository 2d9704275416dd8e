"""The contracts of task families and algorithms, to be run in anybody's tests: what metarl.types asks of a plugin."""

import itertools
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import get_args

import numpy as np
import torch
from torch import Generator, Tensor

from metarl.adapted import tasks_of
from metarl.experience import gather
from metarl.seeding import stream
from metarl.types import (
    Algorithm,
    Batch,
    Examples,
    Experience,
    Family,
    Kind,
    Learner,
    Params,
    Role,
    Rollout,
    Spec,
    Split,
    Tasks,
)


class ContractError(AssertionError):
    """A plugin does not do what is asked of it; the message says what it did and what was expected."""


def check_family(family: Family, tasks: int = 3) -> None:
    """Sample tasks of every split and draw from them, and check what comes back.

    Shapes, dtypes and ranges fit ``family.spec``; what is drawn follows from the generators, and the global ones are
    left alone; fewer than one task is refused.

    Raises:
        ContractError: the family breaks its contract.
    """
    _check_spec(family.spec)
    for split in get_args(Split):
        with _global_generators_unmoved(f"sampling {split} tasks"):
            sampled, again = (family.sample(tasks, split, stream(0, split)) for _ in range(2))
        _check_tasks(sampled, again, family.spec, tasks)
        for role in get_args(Role):
            with _global_generators_unmoved(f"drawing {role} data"):
                drawn, redrawn = (_draw(those, family.spec, role) for those in (sampled, again))
            check_batch(drawn, family.spec, tasks)
            _expect(_equal(drawn, redrawn), f"two draws of {role} data by one seed differ: use the generator given")
    others = [family.sample(tasks, "train", stream(seed, "train")).parameters for seed in range(1, 6)]
    same = [_equal(found.values(), others[0].values()) for found in others]
    _expect(not all(same), "the tasks of 5 seeds are the same: use the generator given")
    _check_refusal(family)


def _check_spec(spec: Spec) -> None:
    _expect(spec.kind in get_args(Kind), f"spec.kind is {spec.kind!r}: expected one of {', '.join(get_args(Kind))}")
    sizes = (*spec.input_shape, spec.output_size)
    _expect(all(size >= 1 for size in sizes), f"{spec} has a size below 1")
    _expect(spec.descriptor_size >= 0, f"{spec} has a negative descriptor_size")


def _check_tasks(tasks: Tasks, again: Tasks, spec: Spec, count: int) -> None:
    for name, value in tasks.parameters.items():
        _expect(len(value) == count, f"the task parameter {name!r} has {len(value)} rows for {count} tasks")
        _expect(torch.equal(value, again.parameters[name]), f"{name!r} of two samples by one seed differ")
    _expect_shape("descriptors", tasks.descriptors, (count, spec.descriptor_size))


def _draw(tasks: Tasks, spec: Spec, role: Role) -> Batch:
    learner = _indifferent(spec)
    return tasks.draw(learner, learner.begin({}, tasks.descriptors), role, stream(0, role))


def _indifferent(spec: Spec) -> Learner:
    """A learner without parameters: its outputs are zero, which makes its policies uniform, or standard normal."""

    def predict(state: int, inputs: Tensor) -> tuple[Tensor, int]:
        return inputs.new_zeros(*inputs.shape[: inputs.ndim - len(spec.input_shape)], spec.model_outputs), state

    return Learner(
        spec,
        adaptations=0,
        init=lambda generator: {},
        begin=lambda params, descriptors: len(descriptors),
        adapt=lambda state, batch: state,
        predict=predict,
        meta_loss=lambda params, experience: (torch.zeros(()), {}),
    )


def _check_refusal(family: Family) -> None:
    try:
        family.sample(0, "train", stream(0, "train"))
    except ValueError:
        return
    raise ContractError("sample(0, ...) gave tasks: expected a ValueError for fewer than one")


def check_batch(batch: Batch, spec: Spec, tasks: int) -> None:
    """Check the shapes, dtypes and ranges of a batch. Raises ContractError."""
    if isinstance(batch, Rollout) and spec.control:
        _check_rollout(batch, spec, tasks)
    elif isinstance(batch, Examples) and not spec.control:
        _check_examples(batch, spec, tasks)
    else:
        expected = "a Rollout" if spec.control else "Examples"
        raise ContractError(f"a {spec.kind} family drew {type(batch).__name__}: expected {expected}")


def _check_examples(batch: Examples, spec: Spec, tasks: int) -> None:
    lead = (tasks, batch.inputs.shape[1])
    _expect_shape("inputs", batch.inputs, (*lead, *spec.input_shape))
    if spec.kind == "regression":
        _expect_shape("targets", batch.targets, (*lead, spec.output_size))
    else:
        _expect_shape("targets", batch.targets, lead, torch.int64)
        found = sorted(set(batch.targets.flatten().tolist()) - set(range(spec.output_size)))
        _expect(not found, f"there are targets {found}: expected 0 to {spec.output_size - 1}")


def _check_rollout(batch: Rollout, spec: Spec, tasks: int) -> None:
    lead = (tasks, *batch.rewards.shape[1:3])
    _expect_shape("observations", batch.observations, (*lead, *spec.input_shape))
    discrete = spec.kind == "discrete"
    shape = lead if discrete else (*lead, spec.output_size)
    _expect_shape("actions", batch.actions, shape, torch.int64 if discrete else None)
    for name in ("log_probs", "rewards", "mask", "advantages"):
        _expect_shape(name, getattr(batch, name), lead)
    ended = batch.mask == 0
    _expect(bool((ended | (batch.mask == 1)).all()), "mask holds other numbers than 0 and 1")
    _expect(not (batch.mask.diff(dim=2) > 0).any(), "mask rises within an episode: expected 1 while it runs, then 0")
    _expect(not (batch.rewards[ended].any() or batch.advantages[ended].any()), "there are rewards after the end")


def check_algorithm(algorithm: Algorithm, family: Family, tasks: int = 4) -> None:
    """Build an algorithm for a family, gather experience, and check what its learner makes of it.

    Initial parameters follow from the generator; outputs have their shapes; tasks do not see each other, and their
    order does not matter; the meta-loss has a gradient, finite and not zero; nothing that goes in is written to.

    Raises:
        ContractError: the algorithm breaks its contract.
        ValueError: the algorithm does not serve the family.
    """
    learner = algorithm.build(family.spec)
    _expect(learner.spec == family.spec, f"the learner is for {learner.spec}, built for {family.spec}")
    params = _checked_params(learner)
    draws = (stream(0, "draw", index) for index in itertools.count())
    experience, _ = gather(learner, params, family.sample(tasks, "train", stream(0, "tasks")), draws)
    kept = [values.clone() for values in _tensors(params, experience)]
    with _global_generators_unmoved("learning"):
        _check_outputs(learner, params, experience)
        _check_meta_loss(learner, params, experience)
        _check_order(learner, params, experience)
        _check_independence(learner, params, experience)
    _expect(_equal(_tensors(params, experience), kept), "the learner wrote into its parameters or its data")


def _checked_params(learner: Learner) -> Params:
    with _global_generators_unmoved("initialisation"):
        params, again, other = (learner.init(Generator().manual_seed(seed)) for seed in (0, 0, 1))
    _expect(_equal(params.values(), again.values()), "two initialisations by one seed differ: use the generator given")
    _expect(
        not _equal(params.values(), other.values()),
        "initialisations by two seeds are the same: use the generator given",
    )
    for name, value in params.items():
        _expect_shape(name, value, tuple(value.shape))
        _expect(not value.requires_grad, f"the initial {name} requires a gradient")
    return params


def _check_outputs(learner: Learner, params: Params, experience: Experience) -> None:
    lead = _inputs(experience.query, learner.spec).shape[:2]
    for outputs in _outputs(learner, params, experience):
        _expect_shape("outputs", outputs, (*lead, learner.spec.model_outputs))


def _check_order(learner: Learner, params: Params, experience: Experience) -> None:
    order = torch.arange(len(experience.descriptors)).flip(0)
    turned = tasks_of(experience, order)
    for found, expected in zip(*(_outputs(learner, params, one) for one in (turned, experience)), strict=True):
        _expect(_close(found, expected[order]), "turning the order of the tasks does not turn that of the outputs")
    losses = [learner.meta_loss(params, one)[0].detach() for one in (turned, experience)]
    _expect(_close(*losses), f"the order of the tasks changes the meta-loss from {losses[1]:.6g} to {losses[0]:.6g}")


def _check_independence(learner: Learner, params: Params, experience: Experience) -> None:
    """Change what the last task was shown."""
    changed = experience._replace(supports=tuple(_changed(support) for support in experience.supports))
    for found, expected in zip(*(_outputs(learner, params, one) for one in (changed, experience)), strict=True):
        _expect(_close(found[:-1], expected[:-1]), "changing the support of one task changes another's outputs")


def _changed(batch: Batch) -> Batch:
    if isinstance(batch, Examples):
        return Examples(_last_negated(batch.inputs), batch.targets)
    return batch._replace(advantages=_last_negated(batch.advantages), rewards=_last_negated(batch.rewards))


def _last_negated(values: Tensor) -> Tensor:
    return torch.cat([values[:-1], -values[-1:]])


def _check_meta_loss(learner: Learner, params: Params, experience: Experience) -> None:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    loss, metrics = learner.meta_loss(leaves, experience)
    _expect_shape("the meta-loss", loss, ())
    gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    for name, gradient in zip(leaves, gradients, strict=True):
        _expect(bool(gradient.isfinite().all()), f"the meta-gradient of {name} is not finite")
    _expect(any(bool(gradient.any()) for gradient in gradients), "the meta-gradient is zero")
    scores = {"regression": ("loss",), "classification": ("loss", "accuracy")}.get(learner.spec.kind, ())
    for score in scores:
        told = any(name.startswith(f"{score}/step_") for name in metrics)
        _expect(told, f"the meta-loss tells {', '.join(metrics) or 'nothing'}: expected {score}/step_k among it")


def _outputs(learner: Learner, params: Params, experience: Experience) -> list[Tensor]:
    """Outputs for the first query inputs, before the first adaptation and after the last."""
    inputs = _inputs(experience.query, learner.spec)
    with torch.no_grad():
        state = learner.begin(params, experience.descriptors)
        before, _ = learner.predict(state, inputs)
        for support in experience.supports:
            state = learner.adapt(state, support)
        return [before, learner.predict(state, inputs)[0]]


def _inputs(query: Batch, spec: Spec) -> Tensor:
    """``[task, item, *input_shape]``: items, or the first observations of episodes."""
    return query.inputs if isinstance(query, Examples) else query.observations[:, :, 0]


def _expect(kept: bool, complaint: str) -> None:
    if not kept:
        raise ContractError(complaint)


def _expect_shape(name: str, values: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
    """Numbers of a shape, finite, and of torch's default dtype unless another is told."""
    told, wanted = f"{values.dtype} {tuple(values.shape)}", f"{dtype or torch.get_default_dtype()} {shape}"
    _expect(told == wanted, f"{name}: found {told}, expected {wanted}")
    _expect(bool(values.isfinite().all()), f"{name}: found numbers that are not finite")


@contextmanager
def _global_generators_unmoved(doing: str) -> Iterator[None]:
    before = _global_states()
    yield
    _expect(_global_states() == before, f"{doing} drew from a global generator: use the one given")


def _global_states() -> tuple[object, ...]:
    state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002  # the global one is what is asked about
    return torch.get_rng_state().tolist(), random.getstate(), state["key"].tolist(), state["pos"]


def _tensors(params: Params, experience: Experience) -> list[Tensor]:
    batches = (*experience.supports, experience.query)
    return [*params.values(), experience.descriptors, *(values for batch in batches for values in batch)]


def _equal(some: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal up to the rounding of sums in another order."""
    tolerance = torch.finfo(one.dtype).eps ** 0.5
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance)
