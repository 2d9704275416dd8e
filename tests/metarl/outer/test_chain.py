"""Chains of first-order parts: torch's own optimisers step by step, schedules in closed form, and runs that resume."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import synthetic

from metarl import resume, runs, train
from metarl.algorithms import MAML, Reptile
from metarl.networks import Network
from metarl.numerics import flatten
from metarl.outer import (
    SGD,
    Adam,
    AdamW,
    At,
    Clip,
    Cosine,
    Descent,
    Linear,
    Torch,
    Transform,
    WarmUp,
    chain,
    meta_gradient,
)
from metarl.testing import check_outer, small_family
from metarl.training import Settings
from metarl.types import Outer, Spec

ALGORITHM = MAML(network=Network(hidden=(4,), activation="tanh"))
LEARNER = ALGORITHM.build(Spec((3,), 1, "regression"))
STEPS = 5


def path(outer: Outer, progress: Callable[[int], float] = lambda step: step / STEPS) -> list[torch.Tensor]:
    """The meta-parameters after each of some updates, as vectors."""
    params = synthetic.initial(LEARNER)
    state, passed = outer.init(params), [flatten(params.values())]
    for step in range(STEPS):
        given = replace(synthetic.experience(LEARNER, params, seed=step), progress=progress(step))
        update = outer.update(LEARNER, params, state, given)
        params, state = update.params, update.state
        passed.append(flatten(params.values()))
    return passed


def torchs(kind: type[torch.optim.Optimizer], clip: float | None = None, factors: Any = None, **options: Any) -> Any:
    """The same path by an optimiser of torch's own, with its own clipping; factors are those of the step size."""
    params = synthetic.initial(LEARNER)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    optimiser = kind(leaves.values(), **options)
    passed = [flatten(params.values())]
    for step in range(STEPS):
        now = {name: value.detach() for name, value in leaves.items()}
        gradient, _ = meta_gradient(LEARNER, now, synthetic.experience(LEARNER, now, seed=step))
        pieces = gradient.split([value.numel() for value in leaves.values()])
        for leaf, piece in zip(leaves.values(), pieces, strict=True):
            leaf.grad = piece.view_as(leaf).clone()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(leaves.values(), clip)
        if factors is not None:
            optimiser.param_groups[0]["lr"] = options["lr"] * factors(step)
        optimiser.step()
        passed.append(flatten([leaf.detach() for leaf in leaves.values()]))
    return passed


def cosine(step: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / STEPS))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("outer", "expected"),
    [
        (chain(AdamW(0.05)), lambda: torchs(torch.optim.Adam, lr=0.05)),
        (chain(Clip(0.1), AdamW(0.05, 0.2)), lambda: torchs(torch.optim.AdamW, 0.1, lr=0.05, weight_decay=0.2)),
        (
            chain(AdamW(0.05, 0.2, 0.8, 0.9, 1e-4)),
            lambda: torchs(torch.optim.AdamW, lr=0.05, weight_decay=0.2, betas=(0.8, 0.9), eps=1e-4),
        ),
        (
            chain(Descent(0.1, 0.9, 0.01)),
            lambda: torchs(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
        ),
        (chain(Clip(0.1), Descent(0.1)), lambda: torchs(torch.optim.SGD, 0.1, lr=0.1)),
        (chain(Torch("NAdam", {"lr": 0.05})), lambda: torchs(torch.optim.NAdam, lr=0.05)),
        (
            chain(Torch("RMSprop", {"lr": 0.01, "centered": True})),
            lambda: torchs(torch.optim.RMSprop, lr=0.01, centered=True),
        ),
        (chain(AdamW(0.05), Cosine(STEPS)), lambda: torchs(torch.optim.Adam, factors=cosine, lr=0.05)),
        (chain(AdamW(0.05), Cosine()), lambda: torchs(torch.optim.Adam, factors=cosine, lr=0.05)),
        (chain(Descent(0.1), Linear(0.5)), lambda: torchs(torch.optim.SGD, factors=lambda k: 1 - k / 10, lr=0.1)),
        (
            chain(Descent(0.1), WarmUp(3)),
            lambda: torchs(torch.optim.SGD, factors=lambda k: min(1, (k + 1) / 3), lr=0.1),
        ),
        (
            Adam(0.05, clip=0.1, weight_decay=0.2, schedule="cosine"),
            lambda: torchs(torch.optim.AdamW, 0.1, cosine, lr=0.05, weight_decay=0.2),
        ),
        (Adam(0.05, schedule="linear"), lambda: torchs(torch.optim.Adam, factors=lambda k: 1 - k / 5, lr=0.05)),
        (SGD(0.1, anneal=False, weight_decay=0.2), lambda: torchs(torch.optim.SGD, lr=0.1, weight_decay=0.2)),
        (SGD(0.1, clip=0.1), lambda: torchs(torch.optim.SGD, 0.1, lambda k: 1 - k / 5, lr=0.1)),
    ],
)  # fmt: skip
def test_it_steps_as_torchs_own_optimisers_do(outer: Outer, expected: Any) -> None:
    found, wanted = path(outer), expected()
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # torch adds 1e-6 to the norm that it clips
    assert not torch.allclose(found[0], found[-1], atol=1e-4)


def test_the_end_of_a_schedule_is_kept() -> None:
    params = torch.ones(2)
    for part, factors in ((Cosine(2, end=0.2), [1.0, 0.6, 0.2, 0.2]), (WarmUp(2), [0.5, 1.0, 1.0, 1.0])):
        state, found = part.init(params), list[float]()
        for _ in factors:
            step, state = part.apply(torch.ones(2), state, At(params, 0.0))  # type: ignore[attr-defined]
            found.append(float(step[0]))
        assert found == pytest.approx(factors)


@pytest.mark.parametrize("norm", [0.5, 5.0, 50.0])
def test_only_what_is_too_long_is_clipped(norm: float) -> None:
    step = torch.tensor([3.0, 4.0])
    found, _ = Clip(norm).apply(step, {}, At(step, 0.0))
    torch.testing.assert_close(found, step if norm >= 5 else step * norm / 5)
    assert Clip(norm).apply(torch.zeros(2), {}, At(step, 0.0))[0].tolist() == [0.0, 0.0]


PARTS = Clip(0.5), AdamW(0.01, 0.1), Torch("NAdam", {"lr": 1.0}), Descent(0.5, 0.9), WarmUp(2), Linear(), Cosine(9)
RECORDED = chain(*PARTS, epochs=2)


def trained(outer: Outer | str, iterations: int, out: Path | None = None) -> Any:
    settings = Settings(iterations=iterations, meta_batch_size=2, device="cpu", checkpoint_every=2)
    return train(ALGORITHM, small_family("discrete"), outer, settings, out)


def test_it_is_recorded_and_resumed_bit_for_bit(tmp_path: Path) -> None:
    outer = replace(RECORDED, parts=tuple(part for part in RECORDED.parts if not isinstance(part, Linear)))
    whole, run = trained(outer, 4), tmp_path / "run"
    trained(outer, 2, run)
    record = json.loads((run / "config.json").read_text())["outer"]
    assert record["options"]["parts"][0] == {"norm": 0.5}
    assert runs.rebuild(runs.describe(RECORDED), "outers") == RECORDED
    resumed = resume(run, iterations=4)
    for name, value in whole.params.items():
        assert torch.equal(value, resumed.params[name])


@dataclass(frozen=True)
class Sign:
    """A part of one's own."""

    step_size: float = 0.01

    def init(self, params: torch.Tensor) -> dict[str, Any]:
        return {"steps": 0}

    def apply(self, step: torch.Tensor, state: dict[str, Any], at: At) -> Any:
        return self.step_size * step.sign(), {"steps": state["steps"] + 1}


SIGNED = chain(Clip(1.0), Sign())


def test_parts_of_ones_own_are_recorded_by_the_name_of_the_chain(tmp_path: Path) -> None:
    assert isinstance(Sign(), Transform)
    first, second, *_ = path(SIGNED)
    torch.testing.assert_close((second - first).abs(), torch.full_like(first, 0.01), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"Chain cannot be recorded in a run folder.*pass .*SIGNED' instead"):
        trained(SIGNED, 1, tmp_path / "run")
    assert trained(f"{__name__}:SIGNED", 1, tmp_path / "named").iteration == 1


def test_it_keeps_the_contract() -> None:
    check_outer(chain(Clip(1.0), AdamW(0.01, 0.1), Cosine(50)), small_family("regression"))
    check_outer(Adam(clip=1.0, weight_decay=0.1, schedule="cosine"), small_family("discrete"))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: chain(), "a chain needs a part"),
        (lambda: chain(AdamW), "is no part of a chain"),
        (lambda: chain(AdamW(), epochs=0), "epochs=0 must be positive"),
        (lambda: chain(AdamW(), chunks=0), "chunks=0: give at least one group"),
        (lambda: Clip(0.0), "Clip: norm=0.0 must be positive"),
        (lambda: AdamW(beta1=1.0), r"AdamW: beta1=1.0 must be in \[0, 1\)"),
        (lambda: AdamW(weight_decay=-1.0), "weight_decay=-1.0 must not be negative"),
        (lambda: Cosine(0), "Cosine: updates=0 must be positive"),
        (lambda: Torch("Adamm"), "torch.optim.Adamm takes no steps"),
        (lambda: Torch("LBFGS"), "torch.optim.LBFGS takes no steps"),
        (lambda: Torch("Adam", {"rate": 1.0}), "torch.optim.Adam takes no steps"),
        (lambda: Adam(clip=0.0), "clip=0.0 must be positive"),
        (lambda: Adam(schedule="steps"), "schedule='steps': expected one of constant, linear, cosine"),  # type: ignore[arg-type]
        (lambda: SGD(weight_decay=-0.1), "weight_decay=-0.1 must not be negative"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()


@pytest.mark.parametrize("outer", [chain(Descent()), SGD(clip=1.0), SGD(weight_decay=0.1), Adam()])
def test_running_averages_among_the_meta_parameters_are_left_to_sgd(outer: Any) -> None:
    averaging = Reptile(network=Network(hidden=(4,))).build(Spec((3,), 1, "regression"))
    with pytest.raises(ValueError, match="hold running averages"):
        outer.check(averaging)
    SGD().check(averaging)
