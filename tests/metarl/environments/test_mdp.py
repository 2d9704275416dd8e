"""The contract of batched environments, on navigation (deterministic, terminates) and tabular MDPs (random)."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch.utils._python_dispatch import TorchDispatchMode

import metarl_envs  # noqa: F401
from metarl_envs import bandit, navigation, tabular

IDS = ["metarl/PointNavigation-v0", "metarl/Bandit-v0", "metarl/TabularMDP-v0"]
MODULES = [navigation, bandit, tabular]
RIGHT = np.array([[1.0, 0.0]] * 3)


def goals(*xs: float) -> dict[str, np.ndarray]:
    return {"goal": np.array([[x, 0.0] for x in xs])}


@pytest.mark.parametrize(("name", "steps"), list(zip(IDS, [100, 100, 10], strict=True)))
def test_make_and_make_vec(name: str, steps: int) -> None:
    assert gymnasium.make(name).spec.max_episode_steps == steps
    envs = gymnasium.make_vec(name, num_envs=3, vectorization_mode="vector_entry_point")
    assert (envs.num_envs, envs.horizon) == (3, steps)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    observations, infos = envs.reset(seed=0)
    assert observations in envs.observation_space
    assert infos == {}
    observations, rewards, terminations, truncations, infos = envs.step(envs.action_space.sample())
    assert observations in envs.observation_space
    assert [value.shape for value in (rewards, terminations, truncations)] == [(3,)] * 3
    assert [value.dtype for value in (rewards, terminations, truncations)] == [np.float32, np.bool_, np.bool_]


def test_horizon_wins_over_gymnasiums_limit() -> None:
    assert gymnasium.make_vec("metarl/Bandit-v0", num_envs=1, horizon=7).horizon == 7


def test_finished_lanes_idle_until_they_are_reset() -> None:
    envs = navigation.make_vector_env(3, horizon=4)
    envs.reset(options=goals(0.1, 0.2, 0.5))
    _, rewards, terminations, truncations, _ = envs.step(RIGHT)
    np.testing.assert_allclose(rewards, [0.0, -0.1, -0.4], atol=1e-6)
    assert terminations.tolist() == [True, False, False]
    observations, rewards, terminations, _, _ = envs.step(RIGHT)
    np.testing.assert_allclose(observations[:, 0], [0.1, 0.2, 0.2], atol=1e-6)
    assert rewards[0] == 0
    assert terminations.tolist() == [True, True, False]
    assert not truncations.any()
    _, rewards, _, _, _ = envs.step(RIGHT)
    np.testing.assert_allclose(rewards, [0.0, 0.0, -0.2], atol=1e-6)
    for _ in range(2):
        observations, rewards, terminations, truncations, _ = envs.step(RIGHT)
        np.testing.assert_allclose(observations[:, 0], [0.1, 0.2, 0.4], atol=1e-6)
        assert terminations.tolist() == [True, True, False]
        assert truncations.tolist() == [False, False, True]
    assert rewards.tolist() == [0, 0, 0]


def test_a_lane_may_terminate_and_be_truncated_in_one_step() -> None:
    envs = navigation.make_vector_env(3, horizon=1)
    envs.reset(options=goals(0.1, 0.2, 0.3))
    _, _, terminations, truncations, _ = envs.step(RIGHT)
    assert terminations.tolist() == [True, False, False]
    assert truncations.tolist() == [True, True, True]


def test_without_a_horizon_nothing_is_truncated() -> None:
    envs = tabular.make_vector_env(2)
    envs.reset()
    assert not any(envs.step(np.array([0, 1]))[3].any() for _ in range(200))


def test_reset_mask_restarts_its_lanes_only() -> None:
    envs = navigation.make_vector_env(3, horizon=2)
    envs.reset(options=goals(0.1, 0.5, 0.5))
    envs.step(RIGHT)
    observations, _ = envs.reset(options={"reset_mask": np.array([True, False, True]), **goals(0.5, 0.1, 0.1)})
    np.testing.assert_allclose(observations, [[0, 0], [0.1, 0], [0, 0]], atol=1e-6)
    _, rewards, terminations, truncations, _ = envs.step(RIGHT)
    # The second lane goes on with its old goal and its old clock.
    np.testing.assert_allclose(rewards, [-0.4, -0.3, 0.0], atol=1e-6)
    assert terminations.tolist() == [False, False, True]
    assert truncations.tolist() == [False, True, False]


def test_parameters_stay_in_force_over_resets() -> None:
    envs = navigation.make_vector_env(3)
    envs.reset(options=goals(0.1, 0.2, 0.3))
    envs.reset()
    np.testing.assert_allclose(envs.step(0 * RIGHT)[1], [-0.1, -0.2, -0.3], atol=1e-6)
    env = navigation.make_env(goal=(0.2, 0.0))
    env.reset(options={"goal": (0.0, 0.5)})
    env.reset()
    assert env.step(np.zeros(2))[1] == -0.5


@pytest.mark.parametrize("module", MODULES)
def test_torch_arrays_in_and_out(module) -> None:
    envs, numpy_envs = module.make_vector_env(4, horizon=2, device="cpu"), module.make_vector_env(4, horizon=2)
    actions = torch.zeros(envs.action_space.shape, dtype=torch.float32).to(
        torch.int64 if module != navigation else None
    )
    observations, _ = envs.reset(seed=3)
    told = envs.step(actions)
    numpy_observations, _ = numpy_envs.reset(seed=3)
    numpy_told = numpy_envs.step(actions.numpy())
    assert envs.device == torch.device("cpu")
    assert numpy_envs.device is None
    for array, expected in zip((observations, *told[:4]), (numpy_observations, *numpy_told[:4]), strict=True):
        assert isinstance(array, torch.Tensor)
        assert isinstance(expected, np.ndarray)
        np.testing.assert_array_equal(array.numpy(), expected)


def test_observations_have_torchs_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        envs = tabular.make_vector_env(2, device="cpu")
        assert envs.reset()[0].dtype == torch.float64
        observations, rewards, _, _, _ = envs.step(torch.zeros(2, dtype=torch.int64))
        assert (observations.dtype, rewards.dtype) == (torch.float64, torch.float64)
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_is_told_belongs_to_the_receiver() -> None:
    envs = navigation.make_vector_env(3, device="cpu")
    observations, _ = envs.reset(options=goals(0.1, 0.2, 0.3))
    observations += 5
    observations, _, terminations, _, _ = envs.step(torch.tensor(RIGHT))
    np.testing.assert_allclose(observations[:, 0].numpy(), [0.1, 0.1, 0.1], atol=1e-6)
    terminations |= True
    assert envs.step(torch.tensor(RIGHT))[2].tolist() == [True, True, False]


def test_parameters_are_copied() -> None:
    chosen = torch.tensor([[0.1, 0.0]] * 3)
    envs = navigation.make_vector_env(3, device="cpu")
    envs.reset(options={"goal": chosen})
    chosen += 1
    np.testing.assert_allclose(envs.step(torch.zeros(3, 2))[1].numpy(), [-0.1] * 3, atol=1e-6)


@pytest.mark.parametrize("module", [bandit, tabular])
def test_seeds_decide_chance(module) -> None:
    def play(seed: int) -> np.ndarray:
        envs = module.make_vector_env(50)
        envs.reset(seed=seed)
        return np.stack([envs.step(np.ones(50, dtype=int))[1] for _ in range(5)])

    np.testing.assert_array_equal(play(1), play(1))
    assert (play(1) != play(2)).any()


@pytest.mark.parametrize("module", MODULES)
def test_single_environments_are_seeded(module) -> None:
    def play(seed: int) -> list[float]:
        env = module.make_env()
        env.action_space.seed(0)
        env.reset(seed=seed)
        return [env.step(env.action_space.sample())[1] for _ in range(20)]

    assert play(5) == play(5)
    assert (play(5) != play(6)) is (module != navigation)


class NoHostSync(TorchDispatchMode):
    """Refuses the operations that make the host wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waiting = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select"}
        name = str(func).split(".")[1]
        moved = name == "_to_copy" and (kwargs or {}).get("device") is not None
        if name in waiting or moved:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("module", MODULES)
def test_steps_never_wait_for_the_device(module) -> None:
    envs = module.make_vector_env(4, horizon=3, device="cpu")
    envs.reset(seed=0)
    actions = torch.as_tensor(envs.action_space.sample())
    with NoHostSync():
        for _ in range(4):
            envs.step(actions)
    with pytest.raises(AssertionError, match="waits for the device"), NoHostSync():
        actions.sum().item()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speed": 1}, r"unknown options \['speed'\]: expected some of \['goal', 'reset_mask'\]"),
        ({"goal": np.zeros(2)}, r"goal has shape \(2,\) where \(3, 2\) was expected"),
        ({"goal": np.full((3, 2), np.nan)}, "goal holds numbers that are not finite"),
        ({"reset_mask": [True]}, r"reset_mask has shape \(1,\) where \(3,\) was expected"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        navigation.make_vector_env(3).reset(options=options)


def test_a_refused_reset_changes_nothing() -> None:
    envs = navigation.make_vector_env(3)
    envs.reset(options=goals(0.1, 0.2, 0.3))
    with pytest.raises(ValueError, match="unknown options"):
        envs.reset(options={**goals(0.5, 0.5, 0.5), "speed": 1})
    np.testing.assert_allclose(envs.step(0 * RIGHT)[1], [-0.1, -0.2, -0.3], atol=1e-6)


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown options \['reset_mask'\]: expected some of \['goal'\]"):
        navigation.make_env().reset(options={"reset_mask": True})
    with pytest.raises(ValueError, match="at least one lane and one step, not 0 and None"):
        navigation.make_vector_env(0)
    with pytest.raises(ValueError, match="at least one lane and one step, not 1 and 0"):
        navigation.make_vector_env(1, horizon=0)
    with pytest.raises(ValueError, match=r"actions have shape \(2, 2\) where \(3, 2\) was expected"):
        navigation.make_vector_env(3).step(np.zeros((2, 2)))


@pytest.mark.parametrize("module", [bandit, tabular])
@pytest.mark.parametrize("action", [-1, 5])
def test_actions_that_do_not_exist_are_refused(module, action: int) -> None:
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        module.make_vector_env(2).step(np.array([0, action]))


@pytest.mark.parametrize("module", [bandit, tabular])
def test_what_steps_draw_does_not_depend_on_the_number_of_lanes(module) -> None:
    def played(lanes: int, horizon: int | None) -> torch.Tensor:
        envs, found = module.make_vector_env(lanes, horizon, device="cpu"), []
        for seed in (3, None):  # the second episode goes on from the first
            envs.reset(seed=seed)
            found += [envs.step(torch.ones(lanes, dtype=torch.int64))[1] for _ in range(6)]
        return torch.stack(found, dim=1)

    few, many = played(2, 6), played(7, 6)
    assert torch.equal(few, many[:2]) and torch.equal(played(2, None), played(7, None)[:2])
    assert len({tuple(row) for row in many.tolist()}) > 4, "lanes draw numbers of their own"
    assert not torch.equal(many[:, :6], many[:, 6:]), "and episodes do, too"


def test_lanes_without_a_horizon_never_run_out_of_random_numbers() -> None:
    envs = tabular.make_vector_env(3, device="cpu")
    envs.reset(seed=0)
    first = torch.stack([envs.step(torch.zeros(3, dtype=torch.int64))[1] for _ in range(600)])
    assert len(first.flatten().unique()) > 1700
    # A lane that is reset again and again needs no more numbers than its longest episode.
    kept = envs._noise.shape[1]
    for _ in range(3):
        envs.reset(options={"reset_mask": torch.ones(3, dtype=torch.bool)})
        for _ in range(600):
            envs.step(torch.zeros(3, dtype=torch.int64))
    assert envs._noise.shape[1] == kept == 1024


def test_a_reset_lane_draws_anew_and_leaves_the_others_alone() -> None:
    def rest(mask: list[bool]) -> torch.Tensor:
        envs = tabular.make_vector_env(3, horizon=8, device="cpu")
        envs.reset(seed=1)
        for _ in range(2):
            envs.step(torch.zeros(3, dtype=torch.int64))
        if any(mask):
            envs.reset(options={"reset_mask": torch.tensor(mask)})
        return torch.stack([envs.step(torch.zeros(3, dtype=torch.int64))[1] for _ in range(4)], dim=1)

    left, restarted = rest([False] * 3), rest([True, False, False])
    assert torch.equal(left[1:], restarted[1:])
    envs = tabular.make_vector_env(3, horizon=8, device="cpu")
    envs.reset(seed=1)
    begun = torch.stack([envs.step(torch.zeros(3, dtype=torch.int64))[1] for _ in range(4)], dim=1)
    assert not torch.equal(restarted[0], begun[0])
