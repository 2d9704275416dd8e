"""Inner loops one task at a time, with a network written out and torch's own optimisers: the tests' reference."""

import torch
from torch import Tensor
from torch.nn import functional

from metarl.types import Batch, Examples, Params, each_tensor

Named = dict[str, Tensor]


def outputs(params: Params, inputs: Tensor) -> Tensor:
    """A perceptron with one hidden layer of tanh; a Gaussian policy's log-std is left to ``loss``."""
    hidden = torch.tanh(functional.linear(inputs, params["hidden_0.weight"], params["hidden_0.bias"]))
    return functional.linear(hidden, params["head.weight"], params["head.bias"])


def loss(kind: str, params: Params, batch: Batch) -> Tensor:
    """Loss of one task, whose fields have no task axis."""
    if isinstance(batch, Examples):
        found = outputs(params, batch.inputs)
        if kind == "classification":
            return functional.cross_entropy(found, batch.targets)
        return functional.mse_loss(found, batch.targets)
    found = outputs(params, batch.observations)
    if kind == "discrete":
        log_probs = torch.distributions.Categorical(logits=found).log_prob(batch.actions)
    else:
        std = params["policy.log_std"].exp().expand_as(found)
        log_probs = torch.distributions.Normal(found, std).log_prob(batch.actions).sum(-1)
    return -((log_probs - batch.log_probs).exp() * batch.advantages * batch.mask).sum() / batch.mask.sum()


def task_of(batch: Batch, task: int) -> Batch:
    """One task of a batch, without the task axis."""
    return each_tensor(lambda values: values[task], batch)


def optimiser(name: str, params: list[Tensor], step_size: float) -> torch.optim.Optimizer:
    """torch's own: plain gradient descent, or Adam without momentum."""
    if name == "sgd":
        return torch.optim.SGD(params, lr=step_size)
    return torch.optim.Adam(params, lr=step_size, betas=(0.0, 0.999))


def train(kind: str, params: Params, batches: list[Batch], name: str, step_size: float) -> list[Named]:
    """Parameters of one task before the first batch and after each, from gradient steps on the batches in turn."""
    own = {key: value.detach().clone().requires_grad_() for key, value in params.items()}
    steps = optimiser(name, list(own.values()), step_size)
    history = [{key: value.detach().clone() for key, value in own.items()}]
    for batch in batches:
        steps.zero_grad()
        loss(kind, own, batch).backward()
        steps.step()
        history.append({key: value.detach().clone() for key, value in own.items()})
    return history
