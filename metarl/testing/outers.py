"""Checks of an outer update: it gets a learner that has something to learn, and experience."""

import dataclasses
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarl import runs
from metarl.numerics import flatten, near
from metarl.outer import meta_gradient
from metarl.testing.batches import close, default_dtype, equal, global_states, shape_faults
from metarl.testing.families import other_dtype
from metarl.testing.findings import Check, Fault, Found, NotChecked, Note
from metarl.testing.updating import Inputs, OuterSubject, all_finite, same
from metarl.types import Chunked, Selective, Update

STEPS = 3
"""Updates within which the parameters must change. One is not enough: a warm-up may begin with a step of length 0."""
CHUNKED = 1e-6
"""Largest distance between the steps for different numbers of groups, in float64, relative to their length."""
PLAIN = (int, float, bool, type(None))
"""Types of values in a state, besides tensors."""


def _refusal(subject: OuterSubject) -> Found:
    if not isinstance(subject.outer, Selective):
        return
    check: Any = subject.outer.check
    for learner in subject.learners():
        try:
            answer = check(learner)
        except ValueError as refusal:
            if not str(refusal):
                yield Fault("check(learner) raised a ValueError without a message: say what is supported", check)
        except Exception as error:
            message = f"check(learner) raised {type(error).__name__}: {error}: expected a ValueError or no exception"
            yield Fault(message, check)
        else:
            if answer is not None:
                message = f"check(learner) returned {answer!r}, which is ignored: raise ValueError to refuse a learner"
                yield Fault(message, check)


def _state(subject: OuterSubject) -> Found:
    yield from _state_faults("init", subject.gathered(torch.device("cpu")).state, subject.outer.init)


def _state_faults(origin: str, state: Any, blamed: Any) -> Found:
    if not isinstance(state, dict):
        yield Fault(f"{origin} returned {type(state).__name__} as the state: expected a dictionary", blamed)
        return
    for name, value in state.items():
        if not isinstance(name, str) or not (isinstance(value, Tensor) or type(value) in PLAIN):
            message = f"{origin} returned a state in which {name!r} is {type(value).__name__}"
            yield Fault(f"{message}: expected tensors and numbers by name, so that a checkpoint can store it", blamed)
        elif isinstance(value, Tensor) and value.requires_grad:
            yield Fault(f"{origin} returned a state in which {name!r} requires a gradient: detach it", blamed)


def _update(subject: OuterSubject) -> Found:
    inputs, blamed = subject.inputs, subject.outer.update
    update: Any = subject.update(inputs.copied())
    if not isinstance(update, Update):
        yield Fault(f"update returned {type(update).__name__}: expected metarl.types.Update", blamed)
        return
    if not update.finite:
        yield Fault("a finite meta-gradient was refused: expected finite=True", blamed)
    if list(update.params) != list(inputs.params):
        found, expected = (", ".join(params) for params in (update.params, inputs.params))
        yield Fault(f"the new parameters are {found}: expected {expected}, in this order", blamed)
        return
    for name, value in inputs.params.items():
        moved = update.params[name]
        yield from shape_faults(f"the new {name}", moved, tuple(value.shape), value.dtype, blamed)
        if isinstance(moved, Tensor) and moved.requires_grad:
            yield Fault(f"the new {name} requires a gradient: detach it", blamed)
    yield from _state_faults("update", update.state, blamed)


def _metrics(subject: OuterSubject) -> Found:
    inputs, blamed = subject.inputs, subject.outer.update
    _, of_tasks = subject.learner.meta_loss(inputs.params, inputs.experience)
    reported = {name: values.mean() for name, values in of_tasks.items()}
    metrics = subject.update(subject.inputs).metrics
    for name, value in metrics.items():
        if not _is_number(value):
            found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            yield Fault(f"the metric {name!r} is {found}: expected one number", blamed)
        elif isinstance(value, Tensor) and value.requires_grad:
            yield Fault(f"the metric {name!r} requires a gradient: detach it", blamed)
        elif name == "outer/refused":
            yield Fault("the metric 'outer/refused' is reserved for the training loop: choose another name", blamed)
        elif not str(name).startswith("outer/") and name not in reported:
            yield Fault(
                f"the metric {name!r} is no metric of the meta-loss: expected a name that begins with outer/", blamed
            )
        elif name in reported and not close(torch.as_tensor(value).to(reported[name]), reported[name].detach()):
            found = f"{float(value):.6g}, but was {float(reported[name]):.6g} before the step"
            yield Fault(f"the metric {name!r} is {found}: report that of the given parameters", blamed)
    missing = [] if subject.learner.spec.control else [name for name in reported if name not in metrics]
    if missing:
        message = (
            f"the metrics lack {', '.join(missing)}: pass on all metrics of the meta-loss, so that they are logged"
        )
        yield Fault(message, blamed)


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_complex()
    return isinstance(value, int | float)


def _purity(subject: OuterSubject) -> Found:
    inputs, expected = subject.inputs, subject.inputs
    subject.outer.init(inputs.params)
    if not same(inputs.params, expected.params):
        yield Fault("init changed the parameters in place: make new tensors", subject.outer.init)
        return
    subject.update(inputs)
    intact = {
        "parameters": same(inputs.params, expected.params),
        "state": same(inputs.state, expected.state),
        "experience": equal(inputs.data, expected.data),
    }
    if written := [name for name, is_intact in intact.items() if not is_intact]:
        message = f"update changed the {' and the '.join(written)} in place: make new tensors and dictionaries"
        yield Fault(message, subject.outer.update)


def _determinism(subject: OuterSubject) -> Found:
    before = global_states()
    states = [subject.outer.init(subject.inputs.params) for _ in range(2)]
    if not same(*states):
        yield Fault("two initial states for the same parameters differ", subject.outer.init)
    one, other = (subject.update(subject.inputs) for _ in range(2))
    if not (same(one.params, other.params) and same(one.state, other.state)):
        message = "two updates with the same parameters, state and experience differ"
        yield Fault(f"{message}: store everything that changes in the state", subject.outer.update)
    if global_states() != before:
        yield Fault("update drew from a global generator: store a seed in the state", subject.outer.update)


def _checkpoint(subject: OuterSubject) -> Found:
    inputs = subject.inputs
    kept = inputs.after(subject.update(inputs.copied()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / runs.CHECKPOINT
        runs.save_checkpoint(path, {"params": kept.params, "outer": kept.state})
        saved = runs.load_checkpoint(path)
    one, other = (
        subject.update(kept),
        subject.update(Inputs(saved["params"], saved["outer"], subject.inputs.experience)),
    )
    if not (same(one.params, other.params) and same(one.state, other.state)):
        message = "after saving and loading the state, the next step is different"
        yield Fault(f"{message}: store everything that changes in the state", subject.outer.update)


def _movement(subject: OuterSubject) -> Found:
    inputs = subject.inputs
    for step in range(STEPS):
        before = inputs.at(step / (STEPS + 1))
        inputs = before.after(subject.update(before.copied()))
        moved = flatten(inputs.params.values()) - flatten(before.params.values())
        if moved.any():
            gradient, _ = meta_gradient(subject.learner, before.params, before.experience)
            if gradient @ moved > 0:
                yield Note("the step increases the meta-loss: is its sign right?")
            return
    message = f"the parameters did not change in {STEPS} updates, although there is something to learn"
    yield Fault(message, subject.outer.update)


def _finite(subject: OuterSubject) -> Found:
    inputs, blamed = subject.inputs, subject.outer.update
    for poison in (math.nan, math.inf):
        update = subject.update(inputs.poisoned(poison).copied())
        if update.finite:
            yield Fault(f"the meta-gradient of data with {poison} was not refused: expected finite=False", blamed)
            continue
        if not same(update.params, inputs.params):
            yield Fault("a refused update changed the parameters: return them unchanged", blamed)
        if not isinstance(update.metrics, Mapping):
            yield Fault(f"the metrics of a refused update are {update.metrics!r}: expected a dictionary", blamed)
        yield from _state_faults("a refused update", update.state, blamed)
        if isinstance(update.state, dict) and not all_finite(update.state):
            yield Fault(
                "a refused update returned a state with numbers that are not finite: return the old one", blamed
            )


def _chunks(subject: OuterSubject) -> Found:
    outer: Any = subject.outer
    fields = dataclasses.fields(outer) if dataclasses.is_dataclass(outer) else ()
    if not isinstance(outer, Chunked) or "chunks" not in {field.name for field in fields}:
        raise NotChecked("the outer update has no field chunks")
    if type(outer.chunks) not in (int, type(None)):
        yield Fault(f"chunks is {outer.chunks!r}: expected a number of groups, or None", type(outer))
        return
    uneven, single = max(1, subject.learning.count - 1), subject.learning.count
    # In float64, so that rounding hardly changes discrete choices, such as the number of line-search steps.
    with default_dtype(torch.float64):
        whole, *others = (_step(subject.afresh(chunks=count)) for count in (1, uneven, single))
    for count, step in zip((uneven, single), others, strict=True):
        if not near(step, whole, CHUNKED):
            apart = float((step - whole).norm() / whole.norm())
            message = f"the step with chunks={count} differs from that with chunks=1 by {apart:.1e} of its length"
            yield Fault(f"{message}: weight each group by its number of tasks", subject.outer.update)


def _step(subject: OuterSubject) -> Tensor:
    moved = subject.update(subject.inputs).params
    return flatten(moved.values()) - flatten(subject.inputs.params.values())


def _dtypes(subject: OuterSubject) -> Found:
    with other_dtype() as dtype:
        other = subject.afresh()
        for check in (_state, _update):
            for fault in check(other):
                if isinstance(fault, Fault):
                    yield fault._replace(message=f"with {dtype} as torch's default, {fault.message}")


def _device(subject: OuterSubject) -> Found:
    device = subject.learning.device
    if device.type == "cpu":
        raise NotChecked("no CUDA device, or device cpu was chosen")
    inputs = subject.gathered(device)
    update, outer = subject.update(inputs), subject.outer
    for blamed, found in ((outer.init, inputs.state), (outer.update, update.params), (outer.update, update.state)):
        for name, value in found.items():
            if isinstance(value, Tensor) and value.device.type != device.type:
                yield Fault(f"{name}: found on {value.device}, expected on {device}", blamed)


CHECKS = (
    Check("refusal", "a learner that is not supported raises ValueError", _refusal),
    Check("state", "a checkpoint can store it: tensors and numbers by name", _state, ("refusal",)),
    Check("update", "parameters keep their names, order, shapes and dtypes", _update, ("state",)),
    Check("metrics", "single numbers, under names that are logged", _metrics, ("update",)),
    Check("purity", "parameters, state and data are not changed in place", _purity, ("update",)),
    Check("determinism", "the step depends only on the arguments", _determinism, ("update",)),
    Check("checkpoint", "saving and loading the state does not change the next step", _checkpoint, ("determinism",)),
    Check("movement", "parameters change if there is something to learn", _movement, ("update",)),
    Check("finite", "a meta-gradient that is nan or infinite is refused, and nothing changes", _finite, ("update",)),
    Check("chunks", "the number of groups changes the step only by rounding", _chunks, ("determinism",)),
    Check("dtypes", "tensors have torch's default dtype", _dtypes, ("update",)),
    Check("device", "it runs on the device of the parameters", _device, ("update",)),
)
