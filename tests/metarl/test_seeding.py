import itertools
import random

import numpy as np
import pytest
import torch

from metarl.seeding import stream


def numbers(generator: torch.Generator) -> list[float]:
    return torch.rand(4, generator=generator).tolist()


def test_equal_arguments_give_equal_streams() -> None:
    assert numbers(stream(3, "actions", 7, 1)) == numbers(stream(3, "actions", 7, 1))
    used = stream(3, "actions", 7, 1)
    torch.rand(100, generator=used)
    assert numbers(stream(3, "actions", 7, 1)) == numbers(stream(3, "actions", 7, 1, device="cpu"))


def test_streams_of_other_seeds_names_and_indices_differ() -> None:
    arguments = [
        (seed, name, *indices)
        for seed in (0, 1, -1, 10, 2**40)
        for name in ("draw", "tasks/train", "tasks/test", "tasks")
        for indices in ((), (0,), (1,), (11,), (1, 1), (1, 11), (11, 1), (0, 0), (2**33,))
    ]
    drawn = {args: tuple(numbers(stream(*args))) for args in arguments}
    assert len(set(drawn.values())) == len(arguments)


def test_neighbouring_streams_are_not_correlated() -> None:
    rows = torch.stack([torch.randn(1000, generator=stream(0, "draw", index)) for index in range(20)])
    correlations = torch.corrcoef(rows)
    off_diagonal = [abs(float(correlations[pair])) for pair in itertools.combinations(range(20), 2)]
    assert max(off_diagonal) < 5 / 1000**0.5


def test_a_stream_is_the_same_in_every_process_and_release() -> None:
    # A literal: resumed runs and recorded results depend on it.
    assert stream(0, "tasks/train", 1).initial_seed() == 3832647984810347440


def test_no_global_generator_is_touched() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    stream(0, "draw", 1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2][1])  # noqa: NPY002


def test_a_stream_lives_on_the_device_asked_for() -> None:
    assert stream(0, "draw", device="cpu").device == torch.device("cpu")
    with pytest.raises(RuntimeError):
        stream(0, "draw", device="nowhere")
