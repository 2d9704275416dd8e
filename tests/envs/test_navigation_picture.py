import gymnasium
import numpy as np
import pytest
import torch
from support import points

from metarl import Sampling, Settings, evaluate, train
from metarl.algorithms import MAML
from metarl.networks import Network
from metarl.plugins import load
from metarl.testing import check_family
from metarl.types import Spec
from metarl_envs import navigation
from metarl_envs.navigation_picture import RADIUS, PointNavigationPicture, make_env, make_vector_env, picture

SMALL = Network("convnet", hidden=(2,), kernels=(5,), downsample="flat")


def test_the_family_is_navigation_seen_as_a_picture() -> None:
    family = PointNavigationPicture()
    assert family.spec == Spec(input_shape=(1, 32, 32), output_size=2, kind="continuous", descriptor_size=2)
    assert make_env().observation_space == gymnasium.spaces.Box(0, 255, (32, 32, 1), np.uint8)
    assert family.parameter_space == navigation.PointNavigation().parameter_space
    generators = (torch.Generator().manual_seed(3) for _ in range(2))
    same, others = (one.sample(5, "test", next(generators)) for one in (family, navigation.PointNavigation()))
    assert torch.equal(same.parameters["goal"], others.parameters["goal"])


def test_pictures_by_hand() -> None:
    def slow(x: float, y: float, size: int) -> np.ndarray:
        pixel, found = 1.2 / size, np.zeros((size, size, 1))
        for row in range(size):
            for column in range(size):
                across, up = (column + 0.5) * pixel - 0.6, 0.6 - (row + 0.5) * pixel
                apart = np.hypot(across - x, up - y)
                found[row, column] = 255 * np.clip((RADIUS - apart) / pixel + 0.5, 0, 1)
        return found

    for x, y in ((0.0, 0.0), (0.31, -0.17), (-0.6, 0.6)):
        for size in (32, 20):
            drawn = picture(torch.tensor([x, y]), size)
            assert drawn.dtype == torch.uint8 and drawn.shape == (size, size, 1)
            np.testing.assert_allclose(drawn.numpy(), slow(x, y, size), atol=0.51)


def test_the_point_is_right_and_up_where_it_is_and_at_the_edge_outside() -> None:
    rows, columns = picture(torch.tensor([0.3, 0.3])).squeeze(-1).double().nonzero().double().mean(0).tolist()
    assert rows < 16 < columns
    assert torch.equal(picture(torch.tensor([5.0, -7.0])), picture(torch.tensor([0.6, -0.6])))
    assert picture(torch.tensor([5.0, -7.0])).max() > 200


def test_small_moves_are_seen() -> None:
    one, other = (picture(torch.tensor([x, 0.0])) for x in (0.1, 0.105))
    assert not torch.equal(one, other)


def test_the_goal_is_not_seen() -> None:
    one, other = (make_env(goal=goal) for goal in ((0.3, 0.4), (-0.2, 0.1)))
    for env in (one, other):
        env.reset(seed=0)
    np.testing.assert_array_equal(one.step(np.ones(2))[0], other.step(np.ones(2))[0])


def test_rewards_and_ends_are_navigations() -> None:
    pictured, plain = make_vector_env(20, 30), navigation.make_vector_env(20, 30)
    goals = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 2)).astype(np.float32)
    for env in (pictured, plain):
        env.reset(options={"goal": goals})
    for action in np.random.default_rng(1).normal(size=(30, 20, 2)).astype(np.float32):
        told, expected = pictured.step(action), plain.step(action)
        for one, other in zip(told[1:4], expected[1:4], strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(told[0], picture(torch.from_numpy(expected[0])).numpy())


def test_single_and_batch_agree_bit_for_bit() -> None:
    points.check_lanes(make_env, make_vector_env, lanes=9, steps=20)


def test_policies_read_pictures_in_zero_to_one_with_channels_first() -> None:
    family = PointNavigationPicture(sampling=Sampling(episodes=2, horizon=3))
    learner = MAML(network=SMALL).build(family.spec)
    state = learner.init(torch.Generator().manual_seed(0))
    tasks = family.sample(2, "test", torch.Generator())
    from metarl.evaluation import adapt

    rollout = adapt(learner, state, tasks, 0)[0].rollout
    assert rollout.observations.shape == (2, 2, 3, 1, 32, 32)
    start = picture(torch.zeros(2)).squeeze(-1).float() / 255
    assert torch.equal(rollout.observations[1, 1, 0, 0], start)


def test_it_keeps_the_contract_and_is_drawn(tmp_path) -> None:
    family = PointNavigationPicture(sampling=Sampling(episodes=2, horizon=4))
    check_family(family)
    run = train(MAML(network=SMALL), family, settings=Settings(iterations=1, meta_batch_size=2))
    found = evaluate(run.learner, run.params, family, tasks=2, steps=1)
    assert family.picture(found.tasks, found.queries, tmp_path / "paths.png").stat().st_size > 1000
    places = family._positions(found.queries[0].actions)
    seen = picture(places[0, 0]).squeeze(-1) / 255
    running = found.queries[0].mask[0, 0].bool()
    assert torch.equal(found.queries[0].observations[0, 0, running, 0], seen[running])
    env = family.single({"goal": np.zeros(2)}, "rgb_array")
    env.reset()
    assert env.render().shape == (400, 400, 3)


def test_lanes_that_are_restored_step_the_same() -> None:
    lanes = make_vector_env(3, 5, "cpu")
    lanes.reset(seed=0)
    before = lanes.snapshot()
    one = lanes.step(torch.ones(3, 2))[0]
    lanes.restore(before)
    assert torch.equal(one, lanes.step(torch.ones(3, 2))[0])
    assert one.dtype == torch.uint8


def test_sizes_are_checked() -> None:
    assert make_env(size=16).reset()[0].shape == (16, 16, 1)
    with pytest.raises(ValueError, match="size=4: expected 8 pixels at least"):
        PointNavigationPicture(size=4)


def test_it_is_installed_under_its_name() -> None:
    try:
        found = load("tasks", "point-navigation-picture")
    except Exception as error:
        pytest.skip(f"not installed anew since it was added: {error}")
    assert found is PointNavigationPicture
