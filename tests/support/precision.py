"""Fixed data for comparing what is computed in float32 with float64, and how far they may be apart."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from support import synthetic
from torch import Tensor

from metarl.types import Batch, Examples, Experience, Learner, Params

TOLERANCES = {
    "outputs": 1e-5,
    "meta-gradients": 2e-5,
    "meta-gradients, large images and ResNet-12": 5e-2,
    "meta-gradients, Reptile": 2e-3,
    "advantages": 1e-6,
    "TRPO: gradient": 2e-5,
    "TRPO: product with the KL's Hessian": 2e-5,
    "TRPO: step": 2e-2,
    "ProMP: step": 1e-4,
    "TRPO: KL of the step": 5e-2,
    "mean KL of 0.01": 1e-6,
    "mean KL of 0.0001": 2e-4,
}
"""By what is compared: how long the difference may be, over the length of what was expected. docs/gpu.md tells them."""


@contextmanager
def dtype(chosen: torch.dtype) -> Iterator[None]:
    """Make it torch's default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(chosen)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def distance(found: Tensor, expected: Tensor) -> float:
    """Length of the difference over the length of what was expected."""
    return float((found.cpu().double() - expected.cpu().double()).norm() / expected.cpu().double().norm())


def assert_near(what: str, found: Tensor, expected: Tensor) -> None:
    """Hold them to the tolerance of what they are."""
    apart = distance(found, expected)
    assert apart < TOLERANCES[what], f"{what}: {apart:.1e} apart where {TOLERANCES[what]:.0e} is allowed"


def data(
    learner: Learner, seed: int, tasks: int = 4, items: int = 10, episodes: int = 5, horizon: int = 20
) -> tuple[Params, Experience]:
    """Initial parameters, and data for each adaptation (for one at least) and the query; in float64."""
    generator = torch.Generator().manual_seed(seed)
    params, spec = learner.init(generator), learner.spec
    drawn: list[Batch] = []
    for _ in range(max(learner.adaptations, 1) + 1):
        if spec.control:
            drawn.append(synthetic.rollout(spec, tasks, generator, episodes, horizon))
            continue
        batch = synthetic.examples(spec, tasks, generator, items)
        if spec.kind == "classification":  # every class in turn
            batch = Examples(batch.inputs, (torch.arange(items) % spec.output_size).expand(tasks, items))
        drawn.append(batch)
    experience = Experience(torch.rand(tasks, spec.descriptor_size, generator=generator), tuple(drawn[:-1]), drawn[-1])
    if spec.control and learner.replay is None:
        experience = synthetic.acted(learner, params, experience, generator)
    return params, experience


def cast(params: Params, experience: Experience, chosen: torch.dtype, device: str) -> tuple[Params, Experience]:
    """Round floating numbers to a dtype, and move all to a device."""

    def there(tensor: Tensor) -> Tensor:
        return tensor.to(device, chosen if tensor.is_floating_point() else tensor.dtype)

    def batch(given: Batch) -> Batch:
        return type(given)(*map(there, given))

    supports = tuple(map(batch, experience.supports))
    moved = experience._replace(
        descriptors=there(experience.descriptors), supports=supports, query=batch(experience.query)
    )
    return {name: there(value) for name, value in params.items()}, moved
