"""Which Boxes are pictures, how a policy sees them, and the way back to an environment's own observations."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first

from metarl.environments import Eye, flat, layout, parted, parts_of, pixels_of

UINT8 = np.uint8


def channels(space: spaces.Box) -> str:
    (part,) = parts_of(spaces.Dict(one=space))
    return part.channels


@pytest.mark.parametrize("shape", [(84, 84, 3), (3, 84, 84), (32, 32, 1), (1, 32, 32), (4, 40, 30), (40, 30, 4)])
def test_pixels_are_pictures_with_their_channels_where_stable_baselines3_has_them(shape: tuple[int, ...]) -> None:
    space = spaces.Box(0, 255, shape, UINT8)
    assert is_image_space(space)
    assert channels(space) == ("first" if is_image_space_channels_first(space) else "last")


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (spaces.Box(0, 255, (9, 8), UINT8), ("first", (1, 9, 8))),  # grey
        (spaces.Box(0, 255, (4, 9, 8, 3), UINT8), ("last", (12, 9, 8))),  # four frames
        (spaces.Box(0, 255, (4, 3, 9, 8), UINT8), ("first", (12, 9, 8))),
        (spaces.Box(0, 1, (9, 8, 3)), ("last", (3, 9, 8))),
        (spaces.Box(0, 1, (2, 9, 8, 3)), ("last", (6, 9, 8))),
        (spaces.Box(0, 255, (9, 8, 3), np.float32), ("last", (3, 9, 8))),
    ],
)
def test_more_pictures(space: spaces.Box, expected: tuple[str, tuple[int, ...]]) -> None:
    (part,) = parts_of(spaces.Dict(one=space))
    assert (part.channels, part.picture) == expected
    assert layout(space).shape == expected[1]


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (6,), UINT8),
        spaces.Box(0, 1, (9, 8)),
        spaces.Box(-1, 1, (9, 8, 3)),
        spaces.Box(0, 1, (9, 8, 3), UINT8),
        spaces.Box(0, 254, (9, 8, 3), UINT8),
    ],
)
def test_what_is_no_picture(space: spaces.Box) -> None:
    assert channels(space) == ""


EVERYTHING = spaces.Dict(
    camera=spaces.Box(0, 255, (5, 4, 3), UINT8),
    arm=spaces.Tuple((spaces.Box(-1, 1, (2, 2)), spaces.MultiDiscrete([2, 3], start=[1, -4]))),
    nested=spaces.Dict(depth=spaces.Box(0, 1, (1, 6, 5)), counts=spaces.Box(-9, 9, (2,), np.int16)),
    flags=spaces.MultiBinary((2, 2)),
    door=spaces.Discrete(3, start=5),
)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return np.asarray(one).dtype == np.asarray(other).dtype and np.array_equal(one, other)


def test_a_vector_leads_back_to_its_parts() -> None:
    EVERYTHING.seed(0)
    for _ in range(20):
        sample = EVERYTHING.sample()
        vector = flat(parts_of(EVERYTHING), sample).astype(np.float32)
        back = parted(EVERYTHING, vector)
        assert equal(back, {name: sample[name] for name in EVERYTHING.spaces})
        assert back in EVERYTHING


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (5, 4, 3), UINT8),
        spaces.Box(0, 255, (3, 5, 4), UINT8),
        spaces.Box(0, 255, (5, 4), UINT8),
        spaces.Box(0, 255, (2, 5, 4, 3), UINT8),
        spaces.Box(0, 1, (5, 4, 3)),
        spaces.Box(-1, 1, (3,)),
        spaces.Box(-1, 1, (2, 3)),
        spaces.Discrete(4, start=-2),
    ],
)
def test_what_a_policy_has_seen_leads_back(space: Any) -> None:
    space.seed(0)
    seen, samples = layout(space), [space.sample() for _ in range(10)]
    eye = Eye(np.float32, "it")
    rows = np.stack([eye.read(seen, sample) for sample in samples]).astype(np.float32)
    assert rows.shape == (10, *seen.shape)
    back = seen.unread(rows)
    assert equal(back, np.stack(samples))
    assert all(one in space for one in back)


@pytest.mark.parametrize("shape", [(5, 4, 3), (3, 5, 4), (2, 5, 4, 3)])
def test_lanes_of_arrays_and_of_tensors_are_read_as_a_single_environment(shape: tuple[int, ...]) -> None:
    space = spaces.Box(0, 255, shape, UINT8)
    pictures = np.arange(2 * int(np.prod(shape)), dtype=UINT8).reshape(2, *shape)
    seen = pixels_of(space)
    assert seen is not None
    expected = np.stack([Eye(np.float32, "it").read(seen, one) for one in pictures])
    np.testing.assert_array_equal(seen.pixels(pictures).astype(np.float32), expected)
    np.testing.assert_array_equal(seen.pixels(torch.from_numpy(pictures)).numpy(), expected)
    every = np.arange(256, dtype=UINT8).reshape(1, 16, 16)
    whole = pixels_of(spaces.Box(0, 255, (1, 16, 16), UINT8))
    assert whole is not None
    np.testing.assert_array_equal(whole.pixels(every).astype(np.float32), whole.pixels(torch.from_numpy(every)).numpy())


def test_lanes_of_a_policys_view_are_left_alone() -> None:
    assert pixels_of(spaces.Box(-np.inf, np.inf, (3, 5, 4))) is None


class Camera(gymnasium.Env):
    observation_space = spaces.Dict(camera=spaces.Box(0, 255, (9, 8, 3), UINT8), speed=spaces.Box(-1, 1, (2,)))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 0.0, False, False, {}


def test_frames_are_stacked_by_gymnasiums_wrapper() -> None:
    env = FrameStackObservation(Camera(), 4)
    camera, speed = parts_of(env.observation_space)
    assert (camera.shape, camera.picture, camera.channels) == ((4, 9, 8, 3), (12, 9, 8), "last")
    assert (speed.shape, speed.channels) == ((4, 2), "")
    observation, _ = env.reset(seed=0)
    vector = flat((camera, speed), observation)
    frames = vector[: camera.size].reshape(camera.shape).transpose(camera.axes).reshape(camera.picture)
    np.testing.assert_allclose(frames[3:6], observation["camera"][1].transpose(2, 0, 1) / 255)


DICT = spaces.Dict(
    uint8=spaces.Box(0, 255, (5, 4, 3), UINT8), floats=spaces.Box(0, 1, (5, 4, 3)), wide=spaces.Box(0, 255, (5, 4, 3))
)
WHOLE = {
    "uint8": np.zeros((5, 4, 3), UINT8),
    "floats": np.zeros((5, 4, 3), np.float32),
    "wide": np.zeros((5, 4, 3), np.float32),
}


@pytest.mark.parametrize(
    ("part", "value", "told"),
    [
        (
            "uint8",
            np.full((5, 4, 3), 0.5),
            "part 'uint8' holds 0.5 where its space has uint8: return whole numbers up to 255",
        ),
        ("uint8", np.full((5, 4, 3), 256), "part 'uint8' is a picture of 256 to 256 where its space has 0 to 255"),
        ("floats", np.full((5, 4, 3), 200.0), "part 'floats' is a picture of 200 to 200 where its space has 0 to 1"),
        ("floats", np.full((5, 4, 3), -0.1), "part 'floats' is a picture of -0.1 to -0.1 where its space has 0 to 1"),
        ("wide", np.full((5, 4, 3), 300.0), "part 'wide' is a picture of 300 to 300 where its space has 0 to 255"),
    ],
)
def test_pictures_of_other_numbers_are_refused(part: str, value: Any, told: str) -> None:
    flat(parts_of(DICT), WHOLE)
    with pytest.raises(ValueError, match=told):
        flat(parts_of(DICT), WHOLE | {part: value})
    with pytest.raises(ValueError, match=told.removeprefix(f"part '{part}' ")):
        Eye(np.float32, "it").read(layout(DICT[part]), value)


def test_rounding_of_filters_is_no_error() -> None:
    flat(parts_of(DICT), WHOLE | {"floats": np.full((5, 4, 3), 1 + 1e-6), "uint8": np.full((5, 4, 3), 255)})
    assert flat(parts_of(DICT), WHOLE | {"uint8": np.full((5, 4, 3), 51.0)})[0] == pytest.approx(0.2)
