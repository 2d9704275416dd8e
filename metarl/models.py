"""Any ``nn.Module`` as pure functions over stacked parameters ``[task, *shape]``.

A module is only a recipe: its parameters are drawn once by ``init`` and passed in ever after. The common layers run as
batched matrix products over the task axis; any other module goes through ``functional_call`` under ``vmap``.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call, vmap

from metarl.types import Params, Spec

ELEMENTWISE = (nn.Tanh, nn.ReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.LeakyReLU, nn.Softplus, nn.Identity)
MINIMUM_STD = 1e-6


class Model(NamedTuple):
    """A network as two pure functions."""

    init: Callable[[Generator], Params]
    """``(CPU generator) -> params``; leaves the global generator as it was."""
    apply: Callable[[Params, Tensor], Tensor]
    """``(stacked params [task, *shape], inputs [task, ..., *input_shape]) -> outputs [task, ..., model_outputs]``."""


class LogStd(nn.Module):
    """Sets a learned log standard deviation, the same in every state, beside a Gaussian policy's means."""

    def __init__(self, size: int, std: float = 1.0) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.full((size,), math.log(std)))

    def forward(self, means: Tensor) -> Tensor:
        """``[..., size]`` means to ``[..., 2 * size]`` outputs."""
        return torch.cat([means, self.log_std.clamp_min(math.log(MINIMUM_STD)).expand_as(means)], dim=-1)


def build(make: Callable[[Spec], nn.Module], spec: Spec) -> Model:
    """Turn ``make(spec)``, any ``nn.Module``, into a Model.

    Raises:
        ValueError: the module holds buffers (running statistics would leak from task to task), cannot run on spec's
            inputs for many tasks at once (random layers such as dropout cannot), or gives outputs of another shape.
    """
    module = _seeded(make, spec, 0)
    owners = _owners(module)
    skeleton = module.to("meta")
    _check(skeleton, spec)

    def init(generator: Generator) -> Params:
        seed = int(torch.randint(2**62, (), generator=generator))
        return {name: value.detach().clone() for name, value in _seeded(make, spec, seed).named_parameters()}

    def apply(params: Params, inputs: Tensor) -> Tensor:
        shared = {name: params[owner] for name, owner in owners.items()}
        return _apply(skeleton, "", shared, inputs, inputs.ndim - len(spec.input_shape))

    return Model(init, apply)


def _seeded(make: Callable[[Spec], nn.Module], spec: Spec, seed: int) -> nn.Module:
    """Modules draw their initial weights from the global generator: lend them one, and put the old one back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make(spec)


def _owners(module: nn.Module) -> dict[str, str]:
    """Every name that a parameter has in the module, and the first of them: tied layers have several."""
    first = {id(value): name for name, value in module.named_parameters()}
    return {name: first[id(value)] for name, value in module.named_parameters(remove_duplicate=False)}


def _check(skeleton: nn.Module, spec: Spec) -> None:
    buffers = [name for name, _ in skeleton.named_buffers()]
    if buffers:
        raise ValueError(
            f"the network keeps buffers ({', '.join(buffers[:3])}), which tasks would share; "
            "use parameters only (for batch norm: track_running_stats=False)"
        )
    stacked = {name: value.unsqueeze(0) for name, value in skeleton.named_parameters(remove_duplicate=False)}
    inputs = torch.empty((1, 2, *spec.input_shape), device="meta")
    try:
        shape = tuple(_apply(skeleton, "", stacked, inputs, lead=2).shape[1:])
    except Exception as error:
        raise ValueError(f"the network cannot run on inputs of shape {spec.input_shape}: {error}") from error
    if shape != (2, spec.model_outputs):
        wanted = "means and log standard deviations" if spec.kind == "continuous" else "outputs"
        raise ValueError(
            f"for 2 inputs the network gives outputs of shape {shape} where {spec} asks for "
            f"{spec.model_outputs} {wanted} for each"
        )


def _apply(module: nn.Module, prefix: str, params: Params, inputs: Tensor, lead: int) -> Tensor:
    """Run one module on ``[task, ..., *shape]``, whose first ``lead`` axes are the task's and the batch's.

    Subclasses may compute something else than the common layers, so only these very types have short cuts.
    """
    if type(module) is nn.Sequential:
        for name, layer in module._modules.items():  # named_children() leaves out a layer's second occurrence
            assert layer is not None
            inputs = _apply(layer, f"{prefix}{name}.", params, inputs, lead)
        return inputs
    if type(module) is nn.Linear:
        return _stacked_linear(params[f"{prefix}weight"], params.get(f"{prefix}bias"), inputs)
    if type(module) in ELEMENTWISE:
        activated: Tensor = module(inputs)
        return activated
    if type(module) is LogStd:
        return _stacked_log_std(params[f"{prefix}log_std"], inputs)
    return _vmapped(module, prefix, params, inputs, lead)


def _stacked_linear(weight: Tensor, bias: Tensor | None, inputs: Tensor) -> Tensor:
    rows = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])
    outputs = torch.bmm(rows, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, weight.mT)
    return outputs.reshape(*inputs.shape[:-1], weight.shape[1])


def _stacked_log_std(log_std: Tensor, means: Tensor) -> Tensor:
    log_std = log_std.clamp_min(math.log(MINIMUM_STD))
    log_std = log_std.reshape(log_std.shape[0], *[1] * (means.ndim - 2), log_std.shape[-1])
    return torch.cat([means, log_std.expand_as(means)], dim=-1)


def _vmapped(module: nn.Module, prefix: str, params: Params, inputs: Tensor, lead: int) -> Tensor:
    own = {name: params[prefix + name] for name, _ in module.named_parameters()}
    rows = inputs.reshape(inputs.shape[0], -1, *inputs.shape[lead:])
    outputs: Tensor = vmap(lambda one, x: functional_call(module, one, (x,)))(own, rows)
    return outputs.reshape(*inputs.shape[:lead], *outputs.shape[2:])
