"""Checks of batches: the shapes, dtypes and ranges that the Spec requires."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarl.testing.findings import Fault, Found
from metarl.types import Batch, Examples, Rollout, Spec


def batch_faults(batch: Batch, spec: Spec, tasks: int, blamed: Any = None) -> Found:
    """Yield faults in the shapes, dtypes and ranges of a batch. ``mask_faults`` checks a rollout's mask."""
    if isinstance(batch, Rollout) and spec.control:
        yield from _rollout_faults(batch, spec, tasks, blamed)
    elif isinstance(batch, Examples) and not spec.control:
        yield from _example_faults(batch, spec, tasks, blamed)
    else:
        expected = "a Rollout" if spec.control else "Examples"
        yield Fault(f"a {spec.kind} family drew {type(batch).__name__}: expected {expected}", blamed)


def _example_faults(batch: Examples, spec: Spec, tasks: int, blamed: Any) -> Found:
    lead = (tasks, *batch.inputs.shape[1:2])
    yield from shape_faults("inputs", batch.inputs, (*lead, *spec.input_shape), blamed=blamed)
    yield from _padding_faults(batch, spec, lead, blamed)
    if spec.kind == "regression":
        yield from shape_faults("targets", batch.targets, (*lead, spec.output_size), blamed=blamed)
        return
    yield from shape_faults("targets", batch.targets, lead, torch.int64, blamed)
    found = sorted(set(batch.targets.flatten().tolist()) - set(range(spec.output_size)))
    if found:
        yield Fault(f"there are targets {found}: expected 0 to {spec.output_size - 1}", blamed)


def _padding_faults(batch: Examples, spec: Spec, lead: tuple[int, ...], blamed: Any) -> Found:
    """Yield faults of a mask that is not 1 for items and then 0, or that the spec does not tell of."""
    if batch.mask is None:
        return
    if not spec.ragged:
        yield Fault("examples have a mask, but spec.ragged is False: learners may not look at it", blamed)
    yield from shape_faults("mask", batch.mask, lead, blamed=blamed)
    if not ((batch.mask == 0) | (batch.mask == 1)).all():
        yield Fault("mask contains numbers other than 0 and 1", blamed)
    if (batch.mask.diff(dim=1) > 0).any() or (batch.mask[:, 0] == 0).any():
        yield Fault("mask rises, or begins with 0: expected the items of each task first, then its padding", blamed)


def _rollout_faults(batch: Rollout, spec: Spec, tasks: int, blamed: Any) -> Found:
    lead = (tasks, *batch.rewards.shape[1:3])
    yield from shape_faults("observations", batch.observations, (*lead, *spec.input_shape), blamed=blamed)
    dtype = torch.int64 if spec.distribution.actions == "discrete" else None
    yield from shape_faults("actions", batch.actions, (*lead, *spec.distribution.action_shape), dtype, blamed)
    yield from shape_faults("last_observations", batch.last_observations, (*lead[:2], *spec.input_shape), blamed=blamed)
    for name in ("log_probs", "rewards", "mask"):
        yield from shape_faults(name, getattr(batch, name), lead, blamed=blamed)
    for name in ("terminated", "truncated"):
        yield from shape_faults(name, getattr(batch, name), lead, torch.bool, blamed)
    if batch.success is not None:
        yield from shape_faults("success", batch.success, lead[:2], blamed=blamed)
        if not ((batch.success == 0) | (batch.success == 1)).all():
            yield Fault("success contains numbers other than 0 and 1", blamed)


def mask_faults(batch: Rollout, blamed: Any = None) -> Found:
    """Yield faults of a mask that is not 1 while the episode runs and then 0, and of rewards after the end."""
    ended = batch.mask == 0
    if not (ended | (batch.mask == 1)).all():
        yield Fault("mask contains numbers other than 0 and 1", blamed)
    if (batch.mask.diff(dim=2) > 0).any():
        yield Fault("mask rises within an episode: expected 1 while it runs, then 0", blamed)
    if ended[:, :, 0].any():
        yield Fault("mask begins with 0: expected at least one step in every episode", blamed)
    if batch.rewards[ended].any():
        yield Fault("there are rewards after the end: expected 0 where the mask is", blamed)
    yield from _end_faults(batch, blamed)


def _end_faults(batch: Rollout, blamed: Any) -> Found:
    """Yield faults of episodes that end without a flag, and of flags where no episode ends."""
    ends, running = batch.terminated | batch.truncated, batch.mask > 0
    stops = running[:, :, :-1] & ~running[:, :, 1:]
    if (ends & ~running).any() or (ends[:, :, :-1] & ~stops).any():
        yield Fault("terminated or truncated is set where the episode does not end", blamed)
    if (stops & ~ends[:, :, :-1]).any():
        yield Fault("an episode ends before the horizon, but is neither terminated nor truncated", blamed)
    if (batch.terminated & batch.truncated).any():
        yield Fault("a step is both terminated and truncated: expected terminated only", blamed)


def shape_faults(
    name: str, values: Any, shape: tuple[int, ...], dtype: torch.dtype | None = None, blamed: Any = None
) -> Found:
    """Yield a fault unless values are a finite tensor of a shape and a dtype, by default torch's default dtype."""
    if not isinstance(values, Tensor):
        yield Fault(f"{name}: found {type(values).__name__}, expected a tensor", blamed)
        return
    found, expected = f"{values.dtype} {tuple(values.shape)}", f"{dtype or torch.get_default_dtype()} {shape}"
    if found != expected:
        yield Fault(f"{name}: found {found}, expected {expected}", blamed)
    if not values.isfinite().all():
        yield Fault(f"{name}: found numbers that are not finite", blamed)


def tensors(batch: Batch) -> list[Tensor]:
    """Return the tensors of a batch, without fields that are None."""
    return [values for values in vars(batch).values() if isinstance(values, Tensor)]


def global_states() -> tuple[object, ...]:
    """Return the states of the global generators, which a plugin must not draw from."""
    state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002  # the global generator is meant here
    return torch.get_rng_state().tolist(), random.getstate(), state["key"].tolist(), state["pos"]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make a dtype torch's default inside the ``with`` block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def equal(some: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    """Return whether two sequences of tensors are equal, element by element."""
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def close(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal up to rounding, such as that of sums in another order."""
    # Half of the digits: the square root of the dtype's machine epsilon.
    tolerance = torch.finfo(one.dtype).eps ** 0.5
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance)
