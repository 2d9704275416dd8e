"""What is asked of an outer update, shown a learner that has something to learn and what it learns from."""

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
"""Updates in which parameters must have moved: a warm-up may begin with a step of length 0."""
CHUNKED = 1e-6
"""Largest distance, in float64, of the steps for other numbers of groups, relative to their length."""
PLAIN = (int, float, bool, type(None))
"""What a state may hold besides tensors."""


def _refusal(subject: OuterSubject) -> Found:
    if not isinstance(subject.outer, Selective):
        return
    check: Any = subject.outer.check
    for learner in subject.learners():
        try:
            answer = check(learner)
        except ValueError as refusal:
            if not str(refusal):
                yield Fault("check(learner) refuses without a word: tell what is served instead", check)
        except Exception as error:
            told = f"check(learner) raised {type(error).__name__}: {error}: expected a ValueError, or nothing"
            yield Fault(told, check)
        else:
            if answer is not None:
                yield Fault(f"check(learner) returned {answer!r}, which nobody reads: refuse by a ValueError", check)


def _state(subject: OuterSubject) -> Found:
    yield from _state_faults("init", subject.gathered(torch.device("cpu")).state, subject.outer.init)


def _state_faults(origin: str, state: Any, blamed: Any) -> Found:
    if not isinstance(state, dict):
        yield Fault(f"{origin} returned {type(state).__name__} for a state: expected a dictionary", blamed)
        return
    for name, value in state.items():
        if not isinstance(name, str) or not (isinstance(value, Tensor) or type(value) in PLAIN):
            told = f"{origin} returned a state in which {name!r} is {type(value).__name__}"
            yield Fault(f"{told}: expected tensors and numbers by name, which a checkpoint keeps", blamed)
        elif isinstance(value, Tensor) and value.requires_grad:
            yield Fault(f"{origin} returned a state in which {name!r} keeps the graph that made it: detach it", blamed)


def _update(subject: OuterSubject) -> Found:
    inputs, blamed = subject.inputs, subject.outer.update
    update: Any = subject.update(inputs.copied())
    if not isinstance(update, Update):
        yield Fault(f"the update is {type(update).__name__}: expected metarl.types.Update", blamed)
        return
    if not update.finite:
        yield Fault("a meta-gradient that is finite was refused: expected finite=True", blamed)
    if list(update.params) != list(inputs.params):
        found, expected = (", ".join(params) for params in (update.params, inputs.params))
        yield Fault(f"the moved parameters are {found}: expected {expected}, in this order", blamed)
        return
    for name, value in inputs.params.items():
        moved = update.params[name]
        yield from shape_faults(f"moved {name}", moved, tuple(value.shape), value.dtype, blamed)
        if isinstance(moved, Tensor) and moved.requires_grad:
            yield Fault(f"moved {name} keeps the graph that made it: detach it", blamed)
    yield from _state_faults("update", update.state, blamed)


def _metrics(subject: OuterSubject) -> Found:
    inputs, blamed = subject.inputs, subject.outer.update
    _, of_tasks = subject.learner.meta_loss(inputs.params, inputs.experience)
    told = {name: values.mean() for name, values in of_tasks.items()}
    metrics = subject.update(subject.inputs).metrics
    for name, value in metrics.items():
        if not _is_number(value):
            found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            yield Fault(f"the metric {name!r} is {found}: expected one number", blamed)
        elif isinstance(value, Tensor) and value.requires_grad:
            yield Fault(f"the metric {name!r} keeps the graph that made it: detach it", blamed)
        elif name == "outer/refused":
            yield Fault("the metric 'outer/refused' is the training loop's: choose another name", blamed)
        elif not str(name).startswith("outer/") and name not in told:
            yield Fault(f"the metric {name!r} stands among others': expected a name that begins with outer/", blamed)
        elif name in told and not close(torch.as_tensor(value).to(told[name]), told[name].detach()):
            found = f"{float(value):.6g}, and {float(told[name]):.6g} before the step"
            yield Fault(f"the metric {name!r} is {found}: tell that of the parameters that are given", blamed)
    missing = [] if subject.learner.spec.control else [name for name in told if name not in metrics]
    if missing:
        yield Fault(f"the metrics lack {', '.join(missing)}, which the meta-loss tells and nobody else logs", blamed)


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_complex()
    return isinstance(value, int | float)


def _purity(subject: OuterSubject) -> Found:
    inputs, expected = subject.inputs, subject.inputs
    subject.outer.init(inputs.params)
    if not same(inputs.params, expected.params):
        yield Fault("init wrote into the parameters: make new tensors", subject.outer.init)
        return
    subject.update(inputs)
    intact = {
        "parameters": same(inputs.params, expected.params),
        "state": same(inputs.state, expected.state),
        "experience": equal(inputs.data, expected.data),
    }
    if written := [name for name, is_intact in intact.items() if not is_intact]:
        told = f"the update wrote into the {' and the '.join(written)}: make new tensors and dictionaries"
        yield Fault(told, subject.outer.update)


def _determinism(subject: OuterSubject) -> Found:
    before = global_states()
    states = [subject.outer.init(subject.inputs.params) for _ in range(2)]
    if not same(*states):
        yield Fault("the states of two beginnings from the same parameters differ", subject.outer.init)
    one, other = (subject.update(subject.inputs) for _ in range(2))
    if not (same(one.params, other.params) and same(one.state, other.state)):
        told = "two updates from the same parameters, state and experience differ"
        yield Fault(f"{told}: keep what is remembered in the state", subject.outer.update)
    if global_states() != before:
        yield Fault("a global generator was drawn from: keep a seed in the state", subject.outer.update)


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
        told = "a state that was saved and loaded gives another next step"
        yield Fault(f"{told}: keep what is remembered in the state", subject.outer.update)


def _movement(subject: OuterSubject) -> Found:
    inputs = subject.inputs
    for step in range(STEPS):
        before = inputs.at(step / (STEPS + 1))
        inputs = before.after(subject.update(before.copied()))
        moved = flatten(inputs.params.values()) - flatten(before.params.values())
        if moved.any():
            gradient, _ = meta_gradient(subject.learner, before.params, before.experience)
            if gradient @ moved > 0:
                yield Note("the step goes up the meta-gradient: is its sign right?")
            return
    told = f"the parameters did not move in {STEPS} updates, although there is something to learn"
    yield Fault(told, subject.outer.update)


def _finite(subject: OuterSubject) -> Found:
    inputs, blamed = subject.inputs, subject.outer.update
    for poison in (math.nan, math.inf):
        update = subject.update(inputs.poisoned(poison).copied())
        if update.finite:
            yield Fault(f"the meta-gradient of data that are {poison} was not refused: expected finite=False", blamed)
            continue
        if not same(update.params, inputs.params):
            yield Fault("a refused update changed the parameters: return them as they were", blamed)
        if not isinstance(update.metrics, Mapping):
            yield Fault(f"the metrics of a refused update are {update.metrics!r}: expected a dictionary", blamed)
        yield from _state_faults("a refused update", update.state, blamed)
        if isinstance(update.state, dict) and not all_finite(update.state):
            yield Fault("a refused update left its state with numbers that are not finite: return the old one", blamed)


def _chunks(subject: OuterSubject) -> Found:
    outer: Any = subject.outer
    fields = dataclasses.fields(outer) if dataclasses.is_dataclass(outer) else ()
    if not isinstance(outer, Chunked) or "chunks" not in {field.name for field in fields}:
        raise NotChecked("it has no field called chunks")
    if type(outer.chunks) not in (int, type(None)):
        yield Fault(f"chunks is {outer.chunks!r}: expected a number of groups, or None", type(outer))
        return
    uneven, single = max(1, subject.learning.count - 1), subject.learning.count
    # In float64 rounding will hardly turn one step into another, such as a line search's into its next.
    with default_dtype(torch.float64):
        whole, *others = (_step(subject.afresh(chunks=count)) for count in (1, uneven, single))
    for count, step in zip((uneven, single), others, strict=True):
        if not near(step, whole, CHUNKED):
            apart = float((step - whole).norm() / whole.norm())
            told = f"chunks={count} takes another step than chunks=1, {apart:.1e} of its length away"
            yield Fault(f"{told}: weigh each group by its tasks", subject.outer.update)


def _step(subject: OuterSubject) -> Tensor:
    moved = subject.update(subject.inputs).params
    return flatten(moved.values()) - flatten(subject.inputs.params.values())


def _dtypes(subject: OuterSubject) -> Found:
    with other_dtype() as dtype:
        other = subject.afresh()
        for check in (_state, _update):
            for fault in check(other):
                if isinstance(fault, Fault):
                    yield fault._replace(told=f"with {dtype} as torch's default, {fault.told}")


def _device(subject: OuterSubject) -> Found:
    device = subject.learning.device
    if device.type == "cpu":
        raise NotChecked("there is no CUDA device, or the CPU was asked for")
    inputs = subject.gathered(device)
    update, outer = subject.update(inputs), subject.outer
    for blamed, found in ((outer.init, inputs.state), (outer.update, update.params), (outer.update, update.state)):
        for name, value in found.items():
            if isinstance(value, Tensor) and value.device.type != device.type:
                yield Fault(f"{name}: found on {value.device}, expected on {device}", blamed)


CHECKS = (
    Check("refusal", "a learner that is not served is refused by a ValueError", _refusal),
    Check("state", "tensors and numbers by name, which a checkpoint keeps", _state, ("refusal",)),
    Check("update", "parameters keep their names, order, shapes and dtypes", _update, ("state",)),
    Check("metrics", "numbers, by names that are logged", _metrics, ("update",)),
    Check("purity", "parameters, state and data are left as they are", _purity, ("update",)),
    Check("determinism", "the step follows from what is given, and from nothing else", _determinism, ("update",)),
    Check("checkpoint", "a state that was saved and loaded gives the same next step", _checkpoint, ("determinism",)),
    Check("movement", "parameters move where there is something to learn", _movement, ("update",)),
    Check("finite", "a meta-gradient that is nan or infinite is refused, and nothing moves", _finite, ("update",)),
    Check("chunks", "groups of tasks change nothing but the rounding", _chunks, ("determinism",)),
    Check("dtypes", "torch's default dtype is followed", _dtypes, ("update",)),
    Check("device", "it works on the device of the parameters", _device, ("update",)),
)
