"""Any ``nn.Module`` as pure functions over stacked parameters ``[task, *shape]``.

A module is only a recipe: ``init`` draws its parameters once, and later calls pass them in. The common layers run for
all tasks at once (``metarl.networks.layers``). Any other module runs through ``functional_call`` under ``vmap``.
"""

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from metarl.networks import layers
from metarl.networks.derivatives import perceptron
from metarl.networks.derivatives.perceptron import Activation
from metarl.networks.layers import LogStd, Residual
from metarl.networks.routing import Routed
from metarl.speed import refuse_autocast, send
from metarl.types import Params, Spec

BatchNorm = Literal["transductive", "inductive"]
Held = dict[torch.device, Params]
"""A network's buffers, which no task owns and nobody changes, without a task axis, on each device that needs them."""


class Apply(Protocol):
    """A network's function."""

    def __call__(self, params: Params, inputs: Tensor, reference: int | None = None) -> Tensor:
        """Stacked params ``[task, *shape]``, inputs ``[task, item, ..., *input_shape]`` to ``[..., model_outputs]``.

        Batch norm computes its statistics on the first ``reference`` items of a task. None: on all items, whose outputs
        then depend on each other. 0: on each item alone.
        """


class Model(NamedTuple):
    """A network as two pure functions."""

    init: Callable[[Generator], Params]
    """``(CPU generator) -> params``; leaves the global generator unchanged."""
    apply: Apply
    """``(stacked params, inputs) -> outputs``, each with the task axis first."""
    batch_norm: BatchNorm | None = None
    """Which statistics ``predict`` uses, if the network has batch norm."""
    layout: "Layout | None" = None
    """The parts of a multilayer perceptron, for derivatives by hand; None for other networks."""


class Layout(NamedTuple):
    """A multilayer perceptron: linear layers with one activation between them, and optionally a log-std at the end."""

    activation: Activation
    layers: tuple[str, ...]
    """Names of the parameters, layer by layer: weight, bias, weight, bias, ..."""
    log_std: str | None
    input_dimensions: int

    def split(self, params: Params) -> tuple[list[Tensor], list[Tensor]]:
        """Return the layers' parameters, and the log-std in a list, which is empty without one."""
        return [params[name] for name in self.layers], [] if self.log_std is None else [params[self.log_std]]

    def apply(self, params: Params, inputs: Tensor) -> Tensor:
        """Run it on ``[task, ..., *input_shape]``."""
        layers, log_std = self.split(params)
        lead = inputs.ndim - self.input_dimensions
        return self.finish(perceptron.outputs(self.activation, layers, _rows(inputs, lead)), log_std, inputs, lead)

    def finish(self, rows: Tensor, log_std: Sequence[Tensor], inputs: Tensor, lead: int) -> Tensor:
        """Reshape the layers' outputs to the batch's axes, and append the log-std."""
        outputs = rows.reshape(*inputs.shape[:lead], rows.shape[-1])
        return layers.log_std(log_std[0], outputs) if log_std else outputs


def _rows(inputs: Tensor, lead: int) -> Tensor:
    return inputs.reshape(inputs.shape[0], math.prod(inputs.shape[1:lead]), -1)


def loss_gradient(
    model: Model,
    params: Params,
    names: Collection[str],
    inputs: Tensor,
    loss: Callable[[Tensor], Tensor],
    second_order: bool = False,
) -> Params:
    """Return the gradient of each task's ``loss(outputs) -> [task]`` in its own named parameters, ``[task, *shape]``.

    Tasks are independent, so the gradient of the summed losses in the stacked parameters is the stack of the tasks'
    gradients. With ``second_order``, the result is differentiable if gradients are enabled and a parameter requires
    them. The loss must then depend on nothing else that requires gradients.

    Raises:
        ValueError: PyTorch's autocast to half precision is on.
    """
    refuse_autocast()
    differentiable = torch.is_grad_enabled() and any(value.requires_grad for value in params.values())
    if model.layout is not None and not inputs.requires_grad:
        return _perceptron_gradient(model.layout, params, names, inputs, loss, differentiable and second_order)
    if not differentiable:
        params = {name: value.detach().requires_grad_(name in names) for name, value in params.items()}
    with torch.enable_grad():
        gradients = torch.autograd.grad(
            loss(model.apply(params, inputs)).sum(),
            [params[name] for name in names],
            create_graph=differentiable and second_order,
            materialize_grads=True,
        )
    return dict(zip(names, gradients, strict=True))


def _perceptron_gradient(
    layout: Layout,
    params: Params,
    names: Collection[str],
    inputs: Tensor,
    loss: Callable[[Tensor], Tensor],
    differentiable: bool,
) -> Params:
    lead = inputs.ndim - layout.input_dimensions

    def of_rows(rows: Tensor, *log_std: Tensor) -> Tensor:
        return loss(layout.finish(rows, log_std, inputs, lead))

    layers, log_std = layout.split(params)
    rows = _rows(inputs, lead)
    gradients = perceptron.loss_gradient(layout.activation, layers, log_std, rows, of_rows, differentiable)
    named = dict(zip((*layout.layers, layout.log_std), gradients, strict=False))  # without a log-std, one fewer
    return {name: named[name] for name in names}


def predict(model: Model, params: Params, inputs: Tensor, seen: Tensor | None = None) -> Tensor:
    """Return outputs for ``inputs`` of a network that was adapted to the support inputs ``seen`` ``[task, item, ...]``.

    Inductive batch norm uses the statistics of the support items, or of each item alone before any were seen. So an
    item's output does not depend on the other items of ``inputs``.
    """
    if model.batch_norm != "inductive":
        return model.apply(params, inputs)
    if seen is None:
        return model.apply(params, inputs, 0)
    known = seen.shape[1]
    return model.apply(params, torch.cat([seen, inputs], dim=1), known)[:, known:]


def build(make: Callable[[Spec], nn.Module], spec: Spec, batch_norm: BatchNorm = "transductive") -> Model:
    """Turn ``make(spec)``, any ``nn.Module``, into a Model.

    Raises:
        ValueError: the module changes its buffers (running statistics would leak between tasks; buffers that stay as
            they are made for seed 0, such as fixed frequencies, are shared by all), cannot run on spec's inputs for
            many tasks at once (random layers such as dropout cannot), or returns outputs of another shape. Also for
            batch norm that cannot be inductive when it should be, and for any batch norm in control. For a ragged
            spec, also for a network whose output for an item depends on other items.
    """
    module = _seeded(make, spec, 0)
    owners = _owners(module)
    constants = _constants(module, spec)
    skeleton = module.to("meta")
    _check(skeleton, spec)
    normalises = _normalises(skeleton, spec, batch_norm)
    layout = _layout(skeleton, len(spec.input_shape))

    def init(generator: Generator) -> Params:
        seed = int(torch.randint(2**62, (), generator=generator))
        return {name: value.detach().clone() for name, value in _seeded(make, spec, seed).named_parameters()}

    def apply(params: Params, inputs: Tensor, reference: int | None = None) -> Tensor:
        if layout is not None and not inputs.requires_grad:
            return layout.apply(params, inputs)
        shared = {name: params[owner] for name, owner in owners.items()}
        if constants:
            shared |= _there(constants, inputs.device)
        lead = inputs.ndim - len(spec.input_shape)
        rows = inputs.reshape(len(inputs), math.prod(inputs.shape[1:lead]), *spec.input_shape)
        rows_seen = None if reference is None else reference * math.prod(inputs.shape[2:lead])
        outputs = _apply(skeleton, "", shared, rows, rows_seen)
        return outputs.reshape(*inputs.shape[:lead], outputs.shape[-1])

    if spec.ragged and not normalises:
        _check_items_apart(init, apply, spec)
    return Model(init, apply, batch_norm if normalises else None, layout)


def _check_items_apart(init: Callable[[Generator], Params], apply: Apply, spec: Spec) -> None:
    """Raise ValueError where an item's output depends on other items: they may be padding."""
    params = stack(init(Generator().manual_seed(0)), 1)
    items = torch.rand(1, 3, *spec.input_shape, generator=Generator().manual_seed(0))
    with torch.no_grad():
        one, other = (apply(params, items[:, pair])[:, 0] for pair in ([0, 1], [0, 2]))
    if not torch.allclose(one, other, rtol=1e-3, atol=1e-4):
        raise ValueError(
            "the tasks differ in their number of examples, and are padded, but this network's output for an item "
            "depends on the others: use a network that reads each item by itself"
        )


def _constants(module: nn.Module, spec: Spec) -> Held:
    """Return a module's buffers, on the device where they were made. Raises ValueError where running changes them."""
    buffers = {name: value for name, value in module.named_buffers(remove_duplicate=False) if value is not None}
    before = {name: value.clone() for name, value in buffers.items()}
    changing = [name for name in buffers if isinstance(module.get_submodule(name.rpartition(".")[0]), _NormBase)]
    if buffers and not changing:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), contextlib.suppress(Exception):
            module(torch.rand(2, *spec.input_shape))  # what it raises is told by _check
        after = dict(module.named_buffers(remove_duplicate=False))
        changing = [name for name, value in before.items() if not torch.equal(after[name], value)]
    if changing:
        raise ValueError(
            f"the network keeps buffers ({', '.join(changing[:3])}), which tasks would share and running it changes; "
            "use parameters only, or buffers that stay as they are (for batch norm: track_running_stats=False)"
        )
    return {torch.device("cpu"): before} if before else {}


def _there(constants: Held, device: torch.device) -> Params:
    """Return constants on a device, to which they are sent once."""
    if device not in constants:
        constants[device] = {name: send(value, device) for name, value in next(iter(constants.values())).items()}
    return constants[device]


def _seeded(make: Callable[[Spec], nn.Module], spec: Spec, seed: int) -> nn.Module:
    """Make a module whose initial weights depend on ``seed`` only: they come from the global generator, seeded here."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make(spec)


def _owners(module: nn.Module) -> dict[str, str]:
    """Map every name of a parameter to its first name: parameters of tied layers have several."""
    first = {id(value): name for name, value in module.named_parameters()}
    return {name: first[id(value)] for name, value in module.named_parameters(remove_duplicate=False)}


def _layout(module: nn.Module, input_dimensions: int) -> Layout | None:
    """Return the layout of a multilayer perceptron with biases and without tied layers; None for other networks."""
    if type(module) is not nn.Sequential:
        return None
    parts = list(module._modules.items())
    if parts and type(parts[0][1]) is nn.Flatten:
        del parts[0]
    log_std = f"{parts.pop()[0]}.log_std" if parts and type(parts[-1][1]) is LogStd else None
    linear, activations = parts[::2], [part for _, part in parts[1::2]]
    kinds = {type(part) for part in activations} or {nn.ReLU}  # a single layer has no activation: any kind will do
    if len(kinds) > 1 or not kinds <= {nn.Tanh, nn.ReLU} or len(linear) != len(activations) + 1:
        return None
    if not all(type(part) is nn.Linear and part.bias is not None for _, part in linear):
        return None
    layers = tuple(f"{name}.{kind}" for name, _ in linear for kind in ("weight", "bias"))
    if len(list(module.parameters())) != len(layers) + (log_std is not None):  # tied layers are counted once
        return None
    return Layout("tanh" if kinds == {nn.Tanh} else "relu", layers, log_std, input_dimensions)


def _normalises(module: nn.Module, spec: Spec, batch_norm: BatchNorm) -> bool:
    """Return whether a network has batch norm. Raises ValueError if that cannot be used as requested."""
    norms = {layer for layer in module.modules() if isinstance(layer, _BatchNorm)}
    if norms and spec.control:
        raise ValueError(
            "batch norm makes an action depend on the other observations in the batch, which differ between acting and "
            "learning: for control use nn.LayerNorm or nn.GroupNorm (the built-in mlp: "
            "no-normalise; conv4 and resnet12 have layer norm there)"
        )
    if batch_norm == "inductive" and norms - {layer for layer in _reached(module) if layers.find(layer)}:
        raise ValueError(
            "inductive batch norm needs nn.BatchNorm1d and nn.BatchNorm2d directly in an nn.Sequential; "
            "inside other modules it does not know which items are support: use batch_norm transductive"
        )
    return bool(norms)


def _reached(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that ``_apply`` runs one by one, not as part of another module."""
    if type(module) in (nn.Sequential, Residual, Routed):
        for layer in module.children():
            yield from _reached(layer)
    else:
        yield module


def _check(skeleton: nn.Module, spec: Spec) -> None:
    params = {name: value.unsqueeze(0) for name, value in skeleton.named_parameters(remove_duplicate=False)}
    params |= dict(skeleton.named_buffers(remove_duplicate=False))
    inputs = torch.empty((1, 2, *spec.input_shape), device="meta")
    try:
        shape = tuple(_apply(skeleton, "", params, inputs, None).shape[1:])
    except Exception as error:
        raise ValueError(f"the network cannot run on inputs of shape {spec.input_shape}: {error}") from error
    if shape != (2, spec.model_outputs):
        gaussian = spec.control and spec.distribution.log_stds > 0
        expected = "means and log standard deviations" if gaussian else "outputs"
        raise ValueError(
            f"for 2 inputs the network gives outputs of shape {shape} where {spec} asks for "
            f"{spec.model_outputs} {expected} for each"
        )


def _apply(module: nn.Module, prefix: str, params: Params, inputs: Tensor, reference: int | None) -> Tensor:
    """Run one module on rows ``[task, row, *shape]``. Batch norm's statistics come from the first ``reference``."""
    if type(module) is nn.Sequential:
        for name, layer in module._modules.items():  # named_children() leaves out a layer's second occurrence
            assert layer is not None
            inputs = _apply(layer, f"{prefix}{name}.", params, inputs, reference)
        return inputs
    if type(module) is Residual:
        body, shortcut = (
            _apply(layer, f"{prefix}{name}.", params, inputs, reference) for name, layer in module.named_children()
        )
        return body + shortcut
    if type(module) is Routed:
        pictures, others = module.cut(inputs)
        named = zip(module.named_children(), pictures, strict=True)
        read = [_apply(one, f"{prefix}{name}.", params, picture, reference) for (name, one), picture in named]
        return torch.cat([*read, *others], dim=-1)
    run = layers.find(module)
    if run is not None:
        own = {name: params[prefix + name] for name, value in module._parameters.items() if value is not None}
        return run(module, own, inputs, reference)
    own = {name: params[prefix + name] for name, _ in module.named_parameters()}
    fixed = {name: params[prefix + name] for name, _ in module.named_buffers()}
    outputs: Tensor = vmap(lambda one, rows: functional_call(module, one | fixed, (rows,)))(own, inputs)
    return outputs


def stack(params: Params, tasks: int) -> Params:
    """Give every task a view of the same parameters."""
    return {name: value.expand(tasks, *value.shape) for name, value in params.items()}
