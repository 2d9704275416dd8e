"""One meta-gradient of MAML on labelled examples, as others write it; all add it to the network's ``.grad``."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from metarl.types import Examples

Loss = Callable[[Tensor, Tensor], Tensor]
Backward = Callable[[nn.Module, Loss, float, Examples, Examples], None]
"""Adds the gradient of the mean query loss after one inner step to the network's ``.grad``."""


def fields(examples: Examples) -> tuple[Tensor, Tensor]:
    """Inputs and targets."""
    return examples.inputs, examples.targets


def by_higher(network: nn.Module, loss: Loss, step_size: float, support: Examples, query: Examples) -> None:
    import higher

    inner = torch.optim.SGD(network.parameters(), lr=step_size)
    for inputs, targets, others, answers in zip(*fields(support), *fields(query), strict=True):
        with higher.innerloop_ctx(network, inner, copy_initial_weights=False) as (copied, optimiser):
            optimiser.step(loss(copied(inputs), targets))
            (loss(copied(others), answers) / len(support.inputs)).backward()


def by_torchopt(network: nn.Module, loss: Loss, step_size: float, support: Examples, query: Examples) -> None:
    import torchopt

    inner = torchopt.MetaSGD(network, lr=step_size)
    initial, optimiser, losses = torchopt.extract_state_dict(network), torchopt.extract_state_dict(inner), []
    for inputs, targets, others, answers in zip(*fields(support), *fields(query), strict=True):
        inner.step(loss(network(inputs), targets))
        losses.append(loss(network(others), answers))
        torchopt.recover_state_dict(network, initial)
        torchopt.recover_state_dict(inner, optimiser)
    torch.stack(losses).mean().backward()


def by_functional(network: nn.Module, loss: Loss, step_size: float, support: Examples, query: Examples) -> None:
    params = dict(network.named_parameters())
    for inputs, targets, others, answers in zip(*fields(support), *fields(query), strict=True):
        value = loss(functional_call(network, params, (inputs,)), targets)
        gradients = torch.autograd.grad(value, list(params.values()), create_graph=True)
        moved = {
            name: value - step_size * slope for (name, value), slope in zip(params.items(), gradients, strict=True)
        }
        (loss(functional_call(network, moved, (others,)), answers) / len(support.inputs)).backward()


def by_vmap(network: nn.Module, loss: Loss, step_size: float, support: Examples, query: Examples) -> None:
    params = dict(network.named_parameters())

    def support_loss(params: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return loss(functional_call(network, params, (inputs,)), targets)

    def query_loss(inputs: Tensor, targets: Tensor, others: Tensor, answers: Tensor) -> Tensor:
        gradients = grad(support_loss)(params, inputs, targets)
        return support_loss(
            {name: value - step_size * gradients[name] for name, value in params.items()}, others, answers
        )

    vmap(query_loss)(*fields(support), *fields(query)).mean().backward()


CONTESTANTS: dict[str, Backward] = {
    "higher": by_higher,
    "torchopt": by_torchopt,
    "functional": by_functional,
    "vmap": by_vmap,
}
