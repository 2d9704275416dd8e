import hashlib
import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch

from metarl import seeding
from metarl.seeding import normal, spawn, stream, uniform

PAIRS = [(34644, 76074), (94710, 106336)]


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


@pytest.mark.parametrize("pair", PAIRS)
def test_streams_differ_whose_seeds_share_what_torch_keeps_of_them(pair: tuple[int, int]) -> None:
    """On a CPU, manual_seed keeps 32 bits of 64: these two would be the same."""
    one, other = (stream(0, "draw", index) for index in pair)
    assert one.initial_seed() % 2**32 == other.initial_seed() % 2**32
    assert numbers(one) != numbers(other)


def test_the_whole_state_is_hashed_from_the_name() -> None:
    words = np.frombuffer(hashlib.shake_256(b"3/draw/7/1").digest(2496), dtype="<u4")
    reference = np.random.MT19937()
    reference.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    expected = (reference.random_raw(2000) & 0xFFFFFF) / 2**24  # torch makes a float32 of the lower 24 bits
    assert torch.rand(2000, generator=stream(3, "draw", 7, 1)).tolist() == expected.tolist()


DRAWS: list[Any] = [
    lambda one: torch.rand(7, generator=one),
    lambda one: torch.randn(1, generator=one, dtype=torch.float64),  # makes two, and keeps one for later
    lambda one: torch.randn(1, generator=one),
    lambda one: torch.randn(33, generator=one),
    lambda one: torch.randint(1000, (5,), generator=one),
    lambda one: torch.randint(2**63 - 1, (5,), generator=one),
    lambda one: torch.randperm(50, generator=one),
    lambda one: torch.empty(9).exponential_(generator=one),
    lambda one: torch.multinomial(torch.ones(9), 4, generator=one),
]


@pytest.mark.parametrize("order", [DRAWS, DRAWS[::-1], [draw for draw in DRAWS for _ in range(3)]])
def test_a_stream_draws_as_any_generator_with_its_state(monkeypatch: pytest.MonkeyPatch, order: list[Any]) -> None:
    fresh = torch.Generator().manual_seed(5)
    words = fresh.get_state().numpy().view(np.uint64)[3 : 3 + 624].astype("<u4").tobytes()

    class Hash:
        def digest(self, size: int) -> bytes:
            return words[:size]

    monkeypatch.setattr(hashlib, "shake_256", lambda name: Hash())
    same = stream(0, "draw")
    for draw in order:
        assert torch.equal(draw(same), draw(fresh))


def test_a_state_that_is_read_and_set_draws_the_same() -> None:
    one, other = stream(0, "draw", 1), torch.Generator()
    torch.randn(3, generator=one)
    other.set_state(one.get_state())
    assert other.initial_seed() == one.initial_seed()
    for draw in DRAWS:
        assert torch.equal(draw(one), draw(other))


def test_spawned_generators_do_not_depend_on_their_number() -> None:
    few, many = (spawn(stream(0, "tasks"), count) for count in (3, 8))
    assert [numbers(one) for one in few] == [numbers(one) for one in spawn(stream(0, "tasks"), 8)[:3]]
    assert len({tuple(numbers(one)) for one in many}) == 8


def test_a_generator_that_spawned_moves_on_whatever_the_number() -> None:
    one, other = stream(0, "tasks"), stream(0, "tasks")
    first, _ = spawn(one, 1), spawn(other, 40)
    again, same = spawn(one, 2), spawn(other, 2)
    assert [numbers(each) for each in again] == [numbers(each) for each in same]
    assert first[0].initial_seed() not in {each.initial_seed() for each in again}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (40, 9), (1031,)])
def test_rows_do_not_depend_on_the_number_of_tasks(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    key = torch.tensor([3, 2**62 + 5])
    for draw in (
        lambda tasks: uniform(stream(0, "tasks"), tasks, *shape, dtype=dtype),
        lambda tasks: seeding._placed(key, tasks, torch.Size(shape), dtype),  # as on a GPU
    ):
        rows = draw(40)
        assert rows.shape == (40, *shape)
        assert rows.dtype == dtype
        assert ((rows >= 0) & (rows < 1)).all()
        for tasks in (1, 5, 39):
            assert torch.equal(draw(tasks), rows[:tasks])


def test_rows_have_the_default_dtype(float64: None) -> None:
    assert uniform(stream(0, "tasks"), 2, 3).dtype == torch.float64


def split_mix(value: int) -> int:
    """SplitMix64's finaliser as it is published, in whole numbers below 2^64."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
    return value ^ (value >> 31)


def test_numbers_by_their_places_are_those_of_whole_numbers() -> None:
    step, key = 0x9E3779B97F4A7C15, (2**63 - 5, 12345)
    expected = [
        [
            split_mix(split_mix((split_mix((key[0] + step * task) % 2**64) + step * place) % 2**64) ^ key[1]) >> 11
            for place in range(6)
        ]
        for task in range(4)
    ]
    found = seeding._placed(torch.tensor(key), 4, torch.Size([2, 3]), torch.float64)
    assert (found * 2**53).long().flatten(1).tolist() == expected


def test_numbers_by_their_places_are_uniform_and_not_correlated() -> None:
    keys = torch.tensor([[0, 0], [0, 1], [1, 0], [5, 5]])
    blocks = [seeding._placed(key, 50, torch.Size([400]), torch.float64) for key in keys]
    rows = torch.cat(blocks)
    assert abs(float(rows.mean()) - 0.5) < 5 * (1 / 12 / rows.numel()) ** 0.5
    counts = torch.histc(rows, 100, 0, 1)
    assert float(((counts - rows.numel() / 100) ** 2 / (rows.numel() / 100)).sum()) < 99 + 5 * (2 * 99) ** 0.5
    off_diagonal = torch.corrcoef(rows) - torch.eye(len(rows), dtype=torch.float64)
    assert float(off_diagonal.abs().max()) < 6 / 400**0.5
    neighbours = torch.stack([rows[:, :-1].flatten(), rows[:, 1:].flatten()])
    assert abs(float(torch.corrcoef(neighbours)[0, 1])) < 5 / neighbours.shape[1] ** 0.5


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_numbers_of_uniform_ones(dtype) -> None:
    numbers = normal(uniform(stream(0, "test"), 40_000, dtype=dtype))
    assert numbers.dtype == dtype
    # Five standard errors: of the mean, of the variance (2 / n), and of the fourth moment (96 / n).
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((numbers.double() ** power).mean()) - moment) < 5 * (spread / 40_000) ** 0.5
    least, most = torch.zeros(1, dtype=dtype), 1 - torch.full((1,), torch.finfo(dtype).eps / 2, dtype=dtype)
    assert normal(least).isfinite() and normal(most).isfinite() and normal(least) < -5 < 5 < normal(most)
    torch.testing.assert_close(
        normal(torch.tensor([0.5, 0.8413447460685429], dtype=dtype)), torch.tensor([0.0, 1.0], dtype=dtype)
    )
