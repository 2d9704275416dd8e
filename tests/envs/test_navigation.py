import gymnasium
import numpy as np
import pytest
import torch
from support import points

from metarl.types import Spec
from metarl_envs.navigation import PointNavigation, make_env, make_vector_env


def test_the_family_is_the_papers() -> None:
    family = PointNavigation()
    assert family.spec == Spec(input_shape=(2,), output_size=2, kind="continuous", descriptor_size=2)
    sampling = family.sampling
    assert (sampling.episodes, sampling.horizon) == (20, 100)
    assert family.parameter_space == gymnasium.spaces.Dict({"goal": gymnasium.spaces.Box(-0.5, 0.5, (2,))})


def test_moves_and_rewards_by_hand() -> None:
    env = make_env(goal=(0.3, 0.4))
    observation, _ = env.reset(seed=0)
    assert observation.tolist() == [0, 0]
    observation, reward, terminated, truncated, _ = env.step(np.array([1.0, -1.0]))
    np.testing.assert_allclose(observation, [0.1, -0.1])
    assert reward == pytest.approx(-np.sqrt(0.2**2 + 0.5**2), abs=1e-6)
    assert (terminated, truncated) == (False, False)
    # Half a unit is 0.05 m, and 7 units are clipped to 0.1 m.
    observation, reward, _, _, _ = env.step(np.array([0.5, 7.0]))
    np.testing.assert_allclose(observation, [0.15, 0.0], atol=1e-7)
    assert reward == pytest.approx(-np.sqrt(0.15**2 + 0.4**2), abs=1e-6)


def test_raw_metres() -> None:
    env = make_env(goal=(0.0, 0.0), action_unit=1.0)
    env.reset()
    np.testing.assert_allclose(env.step(np.array([0.05, 1.0]))[0], [0.05, 0.1], rtol=1e-6)
    assert env.action_space == gymnasium.spaces.Box(-0.1, 0.1, (2,))
    assert make_env().action_space == gymnasium.spaces.Box(-1, 1, (2,))


@pytest.mark.parametrize(
    ("goal", "terminated"),
    [
        ((0.105, 0.005), True),
        ((0.0905, 0.0), True),
        ((0.111, 0.0), False),
        ((0.1, 0.011), False),
        ((0.1, -0.009), True),
    ],
)
def test_an_episode_ends_near_the_goal_on_both_axes(goal: tuple[float, float], terminated: bool) -> None:
    env = make_env(goal=goal)
    env.reset()
    assert env.step(np.array([1.0, 0.0]))[2] is terminated


def test_single_and_batch_agree_bit_for_bit() -> None:
    points.check_lanes(make_env, make_vector_env, lanes=37, steps=60)


def test_goals_fill_their_range_and_depend_on_the_seed_only() -> None:
    def goals(seed: int, **options: float) -> torch.Tensor:
        tasks = PointNavigation(**options).sample(1000, "train", torch.Generator().manual_seed(seed))
        assert torch.equal(tasks.parameters["goal"], tasks.descriptors)
        return tasks.parameters["goal"]

    assert goals(0).shape == (1000, 2)
    assert torch.equal(goals(0), goals(0))
    assert not torch.equal(goals(0), goals(1))
    assert -0.5 <= goals(0).min() < -0.49
    assert 0.49 < goals(0).max() <= 0.5
    assert goals(0).mean(0).abs().max() < 0.05
    assert torch.equal(goals(0, goal_range=1.0), 2 * goals(0))


def test_the_familys_lanes() -> None:
    envs = PointNavigation(action_unit=1.0).environment(6, torch.device("cpu"))
    assert (envs.num_envs, envs.horizon, envs.device) == (6, 100, torch.device("cpu"))
    envs.reset(options={"goal": torch.zeros(6, 2)})
    np.testing.assert_allclose(envs.step(torch.full((6, 2), 0.03))[0].numpy(), 0.03)


def test_walking_straight_bounds_the_papers_oracle() -> None:
    # The paper's oracle, a network that is told the goal, reaches -2.29 on average, its exploration noise included.
    goals = PointNavigation().sample(4000, "test", torch.Generator().manual_seed(0)).parameters["goal"]
    envs = make_vector_env(4000, horizon=100, device="cpu")
    positions, _ = envs.reset(options={"goal": goals})
    total = torch.zeros(4000)
    for _ in range(10):
        positions, rewards, terminations, _, _ = envs.step((goals - positions) / 0.1)
        total += rewards
    assert terminations.all()
    assert -2.29 < total.mean() < -0.5


def test_pictures() -> None:
    env = gymnasium.make("metarl/PointNavigation-v0", goal=(0.3, 0.4), render_mode="rgb_array")
    env.reset(seed=0)
    env.step(np.array([1.0, 0.0], dtype=np.float32))
    frame = env.render()
    assert (frame.shape, frame.dtype) == ((400, 400, 3), np.uint8)
    assert frame[0, 0].tolist() == [255, 255, 255]
    assert frame[199, 200].tolist() == [0, 0, 0]
    assert frame[200, 220].tolist() == [160, 160, 160]
    assert frame[199, 233].tolist() == [200, 30, 30]
    assert frame[66, 300].tolist() == [0, 150, 60]
    # A path that leaves the picture is cut off.
    for _ in range(9):
        env.step(np.array([1.0, 1.0], dtype=np.float32))
    assert env.render().shape == (400, 400, 3)
    assert make_env().render() is None


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one task is needed, not 0"):
        PointNavigation().sample(0, "train", torch.Generator())
    with pytest.raises(ValueError, match=r"metres above 0, not 0 and 0\.5"):
        PointNavigation(action_unit=0)
    with pytest.raises(ValueError, match=r"metres above 0, not 0.1 and -1"):
        PointNavigation(goal_range=-1)
    with pytest.raises(ValueError, match="unknown render mode 'ascii': expected one of"):
        make_env(render_mode="ascii")
