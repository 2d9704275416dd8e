"""An LSTM with an external memory, run over a whole sequence, with its derivative by hand.

Step by step, autograd makes a hundred small operations of each item, passes a dozen times over the memory, and adds up
the gradients of the weights item by item. By hand, the memory is passed over three times on the way back, and each
weight's gradient is one product over all items. The memory's usage decides where to write and has no gradient.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional

SMALLEST = 1e-8
"""Added to the product of lengths by which a cosine divides."""


class Hidden(NamedTuple):
    """The state of the controller and of its memory."""

    output: Tensor  # [row, controller]
    cell: Tensor  # [row, controller]
    read: Tensor  # [row, head * width] vectors returned by the last read
    contents: Tensor  # [row, slot, width]
    usage: Tensor  # [row, slot] decaying sum of read and write weights
    weights: Tensor  # [row, head, slot] read weights of the last read


class Weights(NamedTuple):
    """What the controller and its heads are made of."""

    recurrent: Tensor  # [4 * controller, controller + head * width]
    heads: Tensor  # [told, controller] of each head: its key, with a vector of its own what it writes, and its reuse
    bias: Tensor  # [told]
    strength: Tensor  # [head] factors of the cosines


class Form(NamedTuple):
    """What is not learned."""

    heads: int
    width: int
    decay: float
    separate: bool
    """Whether heads write another vector than their key."""


def run(form: Form, weights: Weights, hidden: Hidden, projected: Tensor) -> tuple[Tensor, Hidden]:
    """Run the controller over a sequence.

    Args:
        form: What is not learned.
        weights: The weights, shared by all rows.
        hidden: The state before the first item.
        projected: ``[row, time, 4 * controller]``: what the items tell the LSTM's gates (input, forget, candidate,
            output), bias included.

    Returns:
        ``[row, time, controller + head * width]``, the controller's outputs and what was read after each item, and the
        state after the last. They can be differentiated once.
    """
    given = (*weights, *hidden, projected)
    kept = torch.is_grad_enabled() and any(value.requires_grad for value in given)
    features, *state = _Run.apply(form, kept, *given)  # type: ignore[no-untyped-call]
    return features, Hidden(*state)


class Access(NamedTuple):
    """One step's access to the memory, as it is kept for the way back."""

    keys: Tensor  # [row, head, width]
    written: Tensor  # [row, head, width]; the keys, unless heads write a vector of their own
    reuse: Tensor  # [row, head, 1] in (0, 1)
    least_used: Tensor  # [row, head, 1] the slot that each head empties
    weights_before: Tensor  # [row, head, slot]
    writing: Tensor  # [row, head, slot]
    contents: Tensor  # [row, slot, width]
    key_lengths: Tensor  # [row, head, 1]
    slot_lengths: Tensor  # [row, 1, slot]
    cosines: Tensor  # [row, head, slot]; 0 for an empty slot
    weights: Tensor  # [row, head, slot] by which the memory is read


class _Step(NamedTuple):
    """What a step of the controller keeps for the way back."""

    before: Tensor  # [row, controller + head * width] output and read vectors of the step before
    gates: Tensor  # [row, 4 * controller] after their sigmoids and tanh
    cell_before: Tensor
    squashed: Tensor  # [row, controller] tanh of the cell
    output: Tensor


def access(
    hidden: Hidden, keys: Tensor, written: Tensor, reuse: Tensor, strength: Tensor, decay: float
) -> tuple[Access, Tensor]:
    """Write to the memory, then read it: least recently used access (Santoro et al., section 3, eqs. 2 to 8).

    Head i takes the i-th least used slot, which is emptied first. It adds its vector to the slots that it read last
    with weight ``reuse``, and to its own slot with weight ``1 - reuse``. Then it reads slots by the cosines of their
    contents with its key, times its strength ``[head]``. Also returns the usage ``[row, slot]``.
    """
    # A stable sort, so that ties are broken in the same way in every batch.
    least_used = hidden.usage.argsort(dim=-1, stable=True)[:, : keys.shape[1]].unsqueeze(-1)
    writing = (reuse * hidden.weights).scatter_add_(2, least_used, 1 - reuse)
    # What was just made is changed in place: a copy of the memory would cost as much as a product with it.
    contents = hidden.contents.scatter(1, least_used.expand_as(written), 0).baddbmm_(writing.mT, written)
    key_lengths, slot_lengths = keys.norm(dim=-1, keepdim=True), contents.norm(dim=-1).unsqueeze(1)
    # Divide by the lengths afterwards: a normalised copy of the contents would cost more than all the rest.
    cosines = keys @ contents.mT / (key_lengths * slot_lengths + SMALLEST)
    weights = functional.softmax(cosines * strength.unsqueeze(-1), dim=-1)
    usage = (weights + writing).sum(1).add(hidden.usage, alpha=decay)
    kept = Access(keys, written, reuse, least_used, hidden.weights, writing, contents, key_lengths, slot_lengths,
                  cosines, weights)  # fmt: skip
    return kept, usage


def _forward(form: Form, weights: Weights, hidden: Hidden, projected: Tensor) -> tuple[Hidden, _Step, Access]:
    before = torch.cat([hidden.output, hidden.read], dim=-1)
    units = hidden.output.shape[-1]
    gates = torch.addmm(projected, before, weights.recurrent.T)
    enter, keep, value, leave = gates.chunk(4, dim=-1)
    for gate in (gates[:, : 2 * units], leave):
        gate.sigmoid_()
    value.tanh_()
    cell = torch.addcmul(keep * hidden.cell, enter, value)
    squashed = cell.tanh()
    output = leave * squashed
    interface = _interface(form, functional.linear(output, weights.heads, weights.bias))
    memory, usage = access(hidden, *interface, weights.strength, form.decay)
    read = (memory.weights @ memory.contents).flatten(1)
    after = Hidden(output, cell, read, memory.contents, usage, memory.weights)
    return after, _Step(before, gates, hidden.cell, squashed, output), memory


def _interface(form: Form, told: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys and written vectors ``[row, head, width]``, and reuse ``[row, head, 1]``."""
    size = form.heads * form.width
    vectors, reuse = told[:, : -form.heads].tanh(), told[:, -form.heads :].sigmoid().unsqueeze(-1)
    keys = vectors[:, :size].reshape(-1, form.heads, form.width)
    return keys, vectors[:, size:].reshape(keys.shape) if form.separate else keys, reuse


class _Back(NamedTuple):
    """Cotangents of what a step hands on; ``output`` and ``read`` with those of its features."""

    output: Tensor
    cell: Tensor
    read: Tensor
    contents: Tensor
    weights: Tensor


class _Told(NamedTuple):
    """Cotangents of a step's products with the weights, from which the weights' gradients come at the end."""

    gates: Tensor  # [row, 4 * controller]
    interface: Tensor  # [row, told]
    strength: Tensor  # [row, head]


def _backward(form: Form, weights: Weights, step: _Step, memory: Access, given: _Back) -> tuple[_Back, _Told]:
    """Return the cotangents of what a step took over, and of its products."""
    contents, vectors, of_reuse, of_weights, of_strength = _backward_access(form, weights.strength, memory, given)
    slopes = (1 - value.square() for value in (memory.keys, memory.written))
    pieces = [(cotangent * slope).flatten(1) for cotangent, slope in zip(vectors, slopes, strict=False)]
    interface = torch.cat([*pieces, _sigmoid_slope(memory.reuse.squeeze(-1), of_reuse)], dim=1)
    # The LSTM.
    output = torch.addmm(given.output, interface, weights.heads)
    enter, keep, value, leave = step.gates.chunk(4, dim=-1)
    cell = torch.addcmul(given.cell, output * leave, 1 - step.squashed.square())
    gates = torch.cat([
        _sigmoid_slope(enter, cell * value), _sigmoid_slope(keep, cell * step.cell_before),
        cell * enter * (1 - value.square()), _sigmoid_slope(leave, output * step.squashed),
    ], dim=-1)  # fmt: skip
    before = gates @ weights.recurrent
    units = output.shape[-1]
    back = _Back(before[:, :units], cell * keep, before[:, units:], contents, of_weights)
    return back, _Told(gates, interface, of_strength)


def _backward_access(
    form: Form, strength: Tensor, memory: Access, given: _Back
) -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor]:
    """Return the cotangents of contents, of keys and written vectors, of reuse, weights and strengths."""
    read = given.read.reshape(-1, form.heads, form.width)
    # The softmax of cosines.
    of_weights = torch.baddbmm(given.weights, read, memory.contents.mT) * memory.weights
    of_logits = torch.addcmul(of_weights, memory.weights, of_weights.sum(-1, keepdim=True), value=-1)
    of_strength = (of_logits * memory.cosines).sum(-1)
    of_products = of_logits * strength.unsqueeze(-1) / (memory.key_lengths * memory.slot_lengths + SMALLEST)
    of_lengths = of_products * memory.cosines  # less than nothing: of the product of lengths
    tiny = torch.finfo(read.dtype).tiny  # the length of an empty slot, or key, has no slope
    of_keys = (of_lengths * memory.slot_lengths).sum(-1, keepdim=True) / memory.key_lengths.clamp_min(tiny)
    of_keys = torch.addcmul(of_products @ memory.contents, of_keys, memory.keys, value=-1)
    of_slots = (of_lengths * memory.key_lengths).sum(1, keepdim=True) / memory.slot_lengths.clamp_min(tiny)
    # Contents were read, and compared with keys.
    reading, by = torch.cat([memory.weights, of_products], dim=1), torch.cat([read, memory.keys], dim=1)
    contents = torch.baddbmm(given.contents, reading.mT, by).addcmul_(of_slots.mT, memory.contents, value=-1)
    # They were written.
    of_written, of_writing = memory.writing @ contents, memory.written @ contents.mT
    of_reuse = (of_writing * memory.weights_before).sum(-1) - of_writing.gather(2, memory.least_used).squeeze(-1)
    contents.scatter_(1, memory.least_used.expand_as(of_written), 0)
    vectors = [of_keys, of_written] if form.separate else [of_keys + of_written]
    return contents, vectors, of_reuse, of_writing * memory.reuse, of_strength


def _sigmoid_slope(value: Tensor, cotangent: Tensor) -> Tensor:
    return cotangent * value * (1 - value)


class _Run(Function):
    @staticmethod
    def forward(ctx: Any, form: Form, kept: bool, *given: Tensor) -> Any:
        weights, hidden, projected = Weights(*given[:4]), Hidden(*given[4:-1]), given[-1]
        outputs, reads, saved = list[Tensor](), list[Tensor](), list[Tensor]()
        for item in projected.unbind(1):
            hidden, step, memory = _forward(form, weights, hidden, item)
            outputs.append(hidden.output)
            reads.append(hidden.read)
            if kept:
                saved += (*step, *memory)
        ctx.form = form
        ctx.save_for_backward(*weights, *saved)
        ctx.mark_non_differentiable(hidden.usage)
        return torch.cat([torch.stack(outputs, dim=1), torch.stack(reads, dim=1)], dim=-1), *hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, features: Tensor, *last: Tensor) -> Any:
        form, saved = ctx.form, ctx.saved_tensors
        weights, steps = Weights(*saved[:4]), _kept(saved[4:])
        of_hidden = Hidden(*last)
        back = _Back(of_hidden.output, of_hidden.cell, of_hidden.read, of_hidden.contents, of_hidden.weights)
        told, units = list[_Told](), of_hidden.output.shape[-1]
        for own, (step, memory) in zip(reversed(features.unbind(1)), reversed(steps), strict=True):
            back = back._replace(output=back.output + own[:, :units], read=back.read + own[:, units:])
            back, products = _backward(form, weights, step, memory, back)
            told.append(products)
        gates, interface, strength = (torch.stack(values[::-1], dim=1) for values in zip(*told, strict=True))
        before, outputs = (torch.stack([getattr(step, name) for step, _ in steps], 1) for name in ("before", "output"))
        of_weights = Weights(
            gates.flatten(0, 1).T @ before.flatten(0, 1), interface.flatten(0, 1).T @ outputs.flatten(0, 1),
            interface.sum((0, 1)), strength.sum((0, 1)),
        )  # fmt: skip
        of_first = Hidden(back.output, back.cell, back.read, back.contents, torch.zeros_like(last[4]), back.weights)
        return None, None, *of_weights, *of_first, gates


def _kept(saved: Sequence[Tensor]) -> list[tuple[_Step, Access]]:
    """Return what was kept of each step, in order."""
    own, size = len(_Step._fields), len(_Step._fields) + len(Access._fields)
    rows = (saved[first : first + size] for first in range(0, len(saved), size))
    return [(_Step(*row[:own]), Access(*row[own:])) for row in rows]
