import math
from typing import Any

import pytest
import torch

from metarl.types import Spec
from metarl_plugins.sinusoid import Harmonic, Sinusoid, harmonics, wave


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_waves_by_hand() -> None:
    inputs = torch.tensor([0.0, math.pi / 2, math.pi])
    amplitude, phase = torch.tensor(2.0), torch.tensor(math.pi / 2)
    torch.testing.assert_close(wave(inputs, amplitude, phase), torch.tensor([-2.0, 0.0, 2.0]), atol=1e-6, rtol=0)
    # 2 sin(x / 2 - pi / 2) + 3 sin(x)
    summed = harmonics(inputs, amplitude, phase, torch.tensor(3.0), torch.tensor(0.0), torch.tensor(0.5))
    torch.testing.assert_close(summed, torch.tensor([-2.0, 3 - math.sqrt(2), 0.0]), atol=1e-6, rtol=0)


def test_the_papers_distribution() -> None:
    tasks = Sinusoid().sample(3000, "train", generator())
    assert set(tasks.parameters) == {"amplitude", "phase"}
    torch.testing.assert_close(tasks.descriptors.amin(0), torch.tensor([0.1, 0.0]), atol=0.01, rtol=0)
    torch.testing.assert_close(tasks.descriptors.amax(0), torch.tensor([5.0, math.pi]), atol=0.01, rtol=0)
    torch.testing.assert_close(tasks.descriptors.mean(0), torch.tensor([2.55, math.pi / 2]), atol=0.1, rtol=0)
    drawn = tasks.draw("support", generator())
    inputs, targets = drawn.inputs, drawn.targets
    assert inputs.shape == (3000, 10, 1)
    torch.testing.assert_close(inputs.amin(), torch.tensor(-5.0), atol=0.01, rtol=0)
    torch.testing.assert_close(inputs.amax(), torch.tensor(5.0), atol=0.01, rtol=0)
    amplitude, phase = tasks.descriptors.unsqueeze(1).split(1, dim=2)
    torch.testing.assert_close(targets, amplitude * torch.sin(inputs - phase))
    assert Sinusoid().spec == Spec((1,), 1, "regression", 2)


def test_trained_on_ten_shots_and_tested_on_five() -> None:
    family = Sinusoid(shots=5, train_shots=10, half_range=True)
    drawn = [family.sample(8, split, generator()).draw("support", generator()) for split in ("train", "test")]
    assert [examples.inputs.shape[1] for examples in drawn] == [10, 5]
    ends = drawn[1].inputs.amin((1, 2)), drawn[1].inputs.amax((1, 2))
    assert ((ends[0] >= 0) | (ends[1] <= 0)).all()


def test_harmonics_are_described_by_both_waves() -> None:
    tasks = Harmonic().sample(2000, "validation", generator())
    assert list(tasks.parameters) == ["amplitude", "phase", "second_amplitude", "second_phase", "frequency"]
    low, high = torch.tensor([0.1, 0, 0.1, 0, 0.5]), torch.tensor([2, 2 * math.pi, 2, 2 * math.pi, 1])
    torch.testing.assert_close(tasks.descriptors.amin(0), low, atol=0.01, rtol=0)
    torch.testing.assert_close(tasks.descriptors.amax(0), high, atol=0.01, rtol=0)
    drawn = tasks.draw("query", generator())
    inputs, targets = drawn.inputs, drawn.targets
    assert inputs.shape == targets.shape == (2000, 100, 1)
    assert targets.abs().max() <= 4
    assert Harmonic().spec == Spec((1,), 1, "regression", 5)


@pytest.mark.parametrize("family", [Sinusoid, Harmonic])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amplitude": (5.0, 0.1)}, r"amplitude=\(5.0, 0.1\): expected the lower end"),
        ({"phase": (1.0, 0.0)}, "phase="),
        ({"inputs": (1.0, 0.0)}, "inputs="),
        ({"shots": 0}, "shots=0: expected at least 1"),
        ({"queries": -1}, "queries=-1"),
    ],
)
def test_wrong_options_are_refused(family: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        family(**options)
