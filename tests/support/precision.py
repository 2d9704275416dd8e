"""Fixed data for comparing what is computed in float32 with float64, and how far they may be apart."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from support import synthetic
from torch import Tensor

from metarl.numerics import flatten
from metarl.outer import TRPO
from metarl.training import Progress
from metarl.training.loop import Run
from metarl.types import Batch, Examples, Experience, Learner, Params, each_tensor

TOLERANCES = {
    "outputs": 1e-5,
    "meta-gradients": 2e-5,
    "outputs, convolutions on a GPU": 1e-4,
    "meta-gradients, convolutions on a GPU": 1e-3,
    "meta-gradients, large images and ResNet-12": 5e-2,
    "meta-gradients, Reptile": 2e-3,
    "advantages": 1e-6,
    "TRPO: gradient": 2e-5,
    "TRPO: product with the KL's Hessian": 2e-5,
    "TRPO: step": 1e-4,
    "ProMP: step": 1e-4,
    "TRPO: KL of the step": 1e-4,
    "mean KL of 0.01": 1e-6,
    "mean KL of 0.0001": 2e-4,
}
"""By what is compared: how long the difference may be, over the length of what was expected. docs/gpu.md tells them."""


ALIKE = 1e-2
"""For the outer updates of iterations whose episodes, too, are rounded differently. An activation that lies within
rounding of zero moves the gradient of a network with ReLU by about a thousandth."""


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


def full_step(start: Params, reached: Params, row: Mapping[str, float | Tensor]) -> Tensor:
    """TRPO's step before the line search shortened it: by once more or less where the bound lies within rounding."""
    tries = float(row["outer/line_search_steps"])
    return (flatten(reached.values()) - flatten(start.values())) / TRPO().backtrack ** (tries - 1)


def assert_alike(
    run: Run,
    starts: Iterable[Progress],
    ends: Iterable[Progress],
    rows: Iterable[Mapping[str, float | Tensor]],
    allowed: float = ALIKE,
) -> None:
    """Hold iterations to those of a run that does the same in another way, each from where it started.

    Their sequels tell nothing: trainings are chaotic. Compared are what was earned or lost, and the outer update: by
    TRPO its step, by Adam its mean gradient, for it makes whole steps of a slope that is zero but for rounding.
    """
    for start, end, row in zip(starts, ends, rows, strict=True):
        expected, wanted = run.iterate(start)
        names = [name for name in wanted if name.startswith(("return/", "loss/", "outer/loss"))]
        assert names
        scores, others = ([float(each[name]) for name in names] for each in (row, wanted))
        assert scores == pytest.approx(others, rel=allowed / 10)
        if "first" in expected.outer:
            apart = distance(end.outer["first"], expected.outer["first"])
        else:
            steps = full_step(start.params, end.params, row), full_step(start.params, expected.params, wanted)
            apart = distance(*steps)
        assert apart < allowed, f"iteration {expected.iteration}: {apart:.1e} apart"


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
            batch = Examples(inputs=batch.inputs, targets=(torch.arange(items) % spec.output_size).expand(tasks, items))
        drawn.append(batch)
    experience = Experience(
        descriptors=torch.rand(tasks, spec.descriptor_size, generator=generator),
        supports=tuple(drawn[:-1]),
        query=drawn[-1],
    )
    if spec.control and learner.memory is None:
        experience = synthetic.acted(learner, params, experience, generator)
    return params, experience


def cast(params: Params, experience: Experience, chosen: torch.dtype, device: str) -> tuple[Params, Experience]:
    """Round floating numbers to a dtype, and move all to a device."""

    def there(tensor: Tensor) -> Tensor:
        return tensor.to(device, chosen if tensor.is_floating_point() else tensor.dtype)

    def batch(given: Batch) -> Batch:
        return each_tensor(there, given)

    supports = tuple(map(batch, experience.supports))
    moved = replace(
        experience, descriptors=there(experience.descriptors), supports=supports, query=batch(experience.query)
    )
    return {name: there(value) for name, value in params.items()}, moved
