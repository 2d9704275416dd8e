"""Returns, the linear baseline and generalised advantages: numbers by hand, and a plain loop in NumPy."""

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl.advantages import (
    Trajectory,
    baseline_features,
    discounted_sums,
    fit_baseline,
    gae,
    normalise,
    trial_advantages,
    with_advantages,
)
from metarl.control.sampling import Sampling
from metarl.types import Rollout, each_tensor

pytestmark = pytest.mark.usefixtures("float64")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trajectory(
    tasks: int = 3, episodes: int = 4, horizon: int = 6, lengths: Tensor | None = None, seed: int = 0
) -> Trajectory:
    """Made-up episodes; the odd ones that end before the horizon were truncated."""
    rng = generator(seed)
    observations = 2 * torch.randn(tasks, episodes, horizon + 1, 2, generator=rng)
    if lengths is None:
        lengths = torch.randint(1, horizon + 1, (tasks, episodes), generator=rng)
    mask = (torch.arange(horizon) < lengths.unsqueeze(-1)).double()
    rewards = torch.randn(tasks, episodes, horizon, generator=rng) * mask
    # Finished lanes repeat their last observation.
    steps = torch.minimum(torch.arange(horizon + 1), lengths.unsqueeze(-1))
    observations = observations.gather(2, steps.unsqueeze(-1).expand_as(observations))
    truncated = (torch.arange(episodes) % 2 * (lengths < horizon)).double()
    actions, log_probs = torch.zeros(tasks, episodes, horizon, 1), torch.zeros(tasks, episodes, horizon)
    return Trajectory(observations[:, :, :-1], actions, log_probs, rewards, mask, observations[:, :, -1], truncated)


def test_discounted_sums_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 4.0]])
    assert discounted_sums(rewards, 0.5).tolist() == [[2.75, 3.5, 3.0], [1.0, 2.0, 4.0]]
    assert discounted_sums(rewards, 1.0).tolist() == [[6, 5, 3], [4, 4, 4]]
    assert discounted_sums(rewards, 0.0).tolist() == rewards.tolist()
    assert rewards[0].tolist() == [1, 2, 3]


def gae_of(
    rewards: list[float], values: list[float], last: float, mask: list[float], sampling: Sampling
) -> list[float]:
    rows = [torch.tensor(one).reshape(1, 1, -1) for one in (rewards, values, mask)]
    found = gae(rows[0], rows[1], torch.tensor([[last]]), rows[2], sampling.discount, sampling.gae_lambda)
    return found.flatten().tolist()


def test_gae_by_hand() -> None:
    half = Sampling(discount=0.5, gae_lambda=0.5)
    # Errors: 1 + 0.5 * 1 - 0.5 = 1; 2 + 0.5 * 2 - 1 = 2; 3 - 2 = 1. The horizon ends the task.
    assert gae_of([1, 2, 3], [0.5, 1, 2], 0, [1, 1, 1], half) == [1 + 0.25 * 2.25, 2 + 0.25 * 1, 1]
    # Terminated after two steps: no value lies beyond, and what stands in the third step does not matter.
    assert gae_of([1, 2, 0], [0.5, 1, 9], 0, [1, 1, 0], half) == [1.25, 1, 0]
    # Truncated there, where the state reached is worth 4: the last error is 2 + 0.5 * 4 - 1 = 3.
    assert gae_of([1, 2, 0], [0.5, 1, 9], 4, [1, 1, 0], half) == [1.75, 3, 0]
    # One-step errors, and the reward-to-go less the baseline.
    assert gae_of([1, 2, 0], [0.5, 1, 9], 4, [1, 1, 0], Sampling(discount=0.5, gae_lambda=0)) == [1, 3, 0]
    assert gae_of([1, 2, 0], [0.5, 1, 9], 4, [1, 1, 0], Sampling(discount=0.5, gae_lambda=1)) == [2.5, 3, 0]
    assert gae_of([7, 0, 0], [1, 9, 9], 0, [1, 0, 0], half) == [6, 0, 0]


def test_normalised_advantages_by_hand() -> None:
    advantages = torch.tensor([[[1.0, 3.0], [50.0, 60.0]], [[5.0, 5.0], [7.0, 3.0]], [[4.0, 4.0], [4.0, 9.0]]])
    mask = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 0.0]]])
    found = normalise(advantages, mask)
    root = 2**0.5
    torch.testing.assert_close(found[0], torch.tensor([[-1.0, 1.0], [0.0, 0.0]]))
    torch.testing.assert_close(found[1], torch.tensor([[0.0, 0.0], [root, -root]]))
    assert found[2].tolist() == [[0, 0], [0, 0]]
    assert normalise(advantages, torch.zeros_like(mask)).tolist() == torch.zeros_like(mask).tolist()


def test_baseline_features_by_hand() -> None:
    observations = torch.tensor([[[[0.5, -20.0], [11.0, 3.0]]]])
    found = baseline_features(observations, torch.tensor([0.0, 50.0]))
    assert found.dtype == torch.float64
    assert found[0, 0].tolist() == [[0.5, -10, 0.25, 100, 0, 0, 0, 1], [10, 3, 100, 9, 0.5, 0.25, 0.125, 1]]
    images = torch.zeros(2, 3, 4, 5, 6, dtype=torch.float32)
    assert baseline_features(images, torch.arange(4.0)).shape == (2, 3, 4, 64)


def test_baseline_fit_by_hand() -> None:
    # A line through (0, 1), (1, 3), (2, 5); the last step is not valid.
    features = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [7.0, 1.0]]).reshape(1, 2, 2, 2)
    returns = torch.tensor([1.0, 3.0, 5.0, -90.0]).reshape(1, 2, 2)
    mask = torch.tensor([1.0, 1.0, 1.0, 0.0]).reshape(1, 2, 2)
    torch.testing.assert_close(fit_baseline(features, returns, mask), torch.tensor([[2.0, 1.0]]), rtol=0, atol=1e-4)
    # One constant feature: (1 + 3 + 5) / (3 + ridge).
    found = fit_baseline(torch.ones(1, 2, 2, 1), returns, mask, ridge=1.5)
    torch.testing.assert_close(found, torch.tensor([[2.0]]))


def test_baseline_fit_is_numpys_least_squares() -> None:
    features = torch.randn(3, 10, 20, 6, generator=generator())
    returns = torch.randn(3, 10, 20, generator=generator(1))
    mask = (torch.arange(20) < torch.randint(5, 21, (3, 10, 1), generator=generator(2))).double()
    found = fit_baseline(features, returns, mask)
    for task in range(3):
        valid = mask[task].bool().numpy()
        expected = np.linalg.lstsq(features[task].numpy()[valid], returns[task].numpy()[valid], rcond=None)[0]
        np.testing.assert_allclose(found[task].numpy(), expected, rtol=0, atol=1e-6)


def test_one_tasks_ridge_does_not_rise_for_another() -> None:
    features = torch.randn(2, 5, 8, 4, generator=generator())
    features[1] = 1e9 * features[1, :1, :1]  # of rank one, and far beyond the smallest ridge in float64
    returns, mask = torch.randn(2, 5, 8, generator=generator(1)), torch.ones(2, 5, 8)
    rows = features.flatten(1, 2)
    assert torch.linalg.cholesky_ex(rows.mT @ rows + 1e-5 * torch.eye(4)).info.tolist()[1] > 0
    both, alone = fit_baseline(features, returns, mask), fit_baseline(features[:1], returns[:1], mask[:1])
    assert both.isfinite().all()
    torch.testing.assert_close(both[:1], alone, rtol=1e-12, atol=0)


HARD = {
    "ends at the first step": trajectory(lengths=torch.ones(3, 4, dtype=torch.int64)),
    "constant observations": trajectory()._replace(observations=torch.ones(3, 4, 6, 2)),
    "no observation": trajectory()._replace(
        observations=torch.zeros(3, 4, 6, 0), last_observations=torch.zeros(3, 4, 0)
    ),
    "a task without a step": trajectory(lengths=torch.tensor([[0] * 4, [6] * 4, [3] * 4])),
    "one step in all": trajectory(1, 1, 1),
    "huge observations": trajectory()._replace(observations=1e30 * trajectory().observations),
    "huge rewards": trajectory()._replace(rewards=1e30 * trajectory().rewards),
    "tiny rewards": trajectory()._replace(rewards=1e-30 * trajectory().rewards),
    "no reward": trajectory()._replace(rewards=torch.zeros(3, 4, 6)),
    "long": trajectory(1, 2, 5000, torch.tensor([[5000, 4000]])),
    "more features than steps": trajectory()._replace(
        observations=torch.randn(3, 4, 6, 40, generator=generator()),
        last_observations=torch.randn(3, 4, 40, generator=generator()),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", HARD)
def test_no_batch_is_refused(name: str, dtype: torch.dtype) -> None:
    batch = Trajectory(*(field.to(dtype) for field in HARD[name]))
    found = with_advantages(batch, 1.0, 1.0)
    assert found.advantages.dtype == dtype
    assert found.advantages.isfinite().all()
    assert (found.advantages[found.mask == 0] == 0).all()
    assert found.advantages.abs().max() < 100
    if name == "no reward":
        assert (found.advantages == 0).all()


def test_sums_of_large_rewards_do_not_overflow() -> None:
    batch = trajectory(2, 3, 50, torch.full((2, 3), 50))._replace(rewards=torch.full((2, 3, 50), 3e37))
    batch.rewards[:, 0] = -3e37
    found = with_advantages(Trajectory(*(field.float() for field in batch)), 1.0, 1.0)
    assert found.advantages.isfinite().all()
    assert (found.advantages[:, 0, :10] < 0).all()


def reference(batch: Trajectory, sampling: Sampling) -> np.ndarray:
    """The same estimate in plain loops, with NumPy's own least squares."""
    observations, rewards, lasts = batch.observations.numpy(), batch.rewards.numpy(), batch.last_observations.numpy()
    found = np.zeros(rewards.shape)

    def features(observation: np.ndarray, step: int) -> list[float]:
        clipped = np.clip(observation, -10, 10)
        return [*clipped, *clipped**2, step / 100, (step / 100) ** 2, (step / 100) ** 3, 1]

    for task in range(len(rewards)):
        lengths = batch.mask[task].sum(1).int().tolist()
        rows, targets = [], []
        for episode, length in enumerate(lengths):
            for step in range(length):
                rows.append(features(observations[task, episode, step], step))
                targets.append(
                    sum(
                        sampling.discount ** (later - step) * rewards[task, episode, later]
                        for later in range(step, length)
                    )
                )
        matrix = np.array(rows)
        weights = np.linalg.solve(matrix.T @ matrix + 1e-5 * np.eye(matrix.shape[1]), matrix.T @ np.array(targets))
        for episode, length in enumerate(lengths):
            values = [np.dot(features(observations[task, episode, step], step), weights) for step in range(length)]
            beyond = np.dot(features(lasts[task, episode], length), weights) if batch.truncated[task, episode] else 0.0
            values.append(beyond)
            following = 0.0
            for step in reversed(range(length)):
                error = rewards[task, episode, step] + sampling.discount * values[step + 1] - values[step]
                following = error + sampling.discount * sampling.gae_lambda * following
                found[task, episode, step] = following
        valid = batch.mask[task].bool().numpy()
        found[task][valid] = (found[task][valid] - found[task][valid].mean()) / (found[task][valid].std() + 1e-8)
    return found


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(discount=0.9, gae_lambda=0.7)], ids=["default", "lambda"])
def test_advantages_equal_plain_loops(sampling: Sampling) -> None:
    batch = trajectory(3, 8, 6)
    assert batch.truncated.any()
    assert (batch.truncated == 0).any()
    found = with_advantages(batch, sampling.discount, sampling.gae_lambda)
    np.testing.assert_allclose(found.advantages.numpy(), reference(batch, sampling), rtol=0, atol=1e-6)
    for name in ("observations", "actions", "log_probs", "rewards", "mask"):
        assert torch.equal(getattr(found, name), getattr(batch, name))
    # Bootstrapping matters: the same episodes, terminated instead, give other numbers.
    ended = with_advantages(
        batch._replace(truncated=torch.zeros_like(batch.truncated)), sampling.discount, sampling.gae_lambda
    )
    assert not torch.allclose(ended.advantages, found.advantages, atol=1e-2)


def test_tasks_do_not_see_each_other() -> None:
    batch = trajectory()
    found = with_advantages(batch, 0.99, 1.0).advantages
    permuted = with_advantages(Trajectory(*(field[[2, 0, 1]] for field in batch)), 0.99, 1.0).advantages
    torch.testing.assert_close(permuted, found[[2, 0, 1]], rtol=1e-12, atol=1e-12)
    other = batch._replace(rewards=batch.rewards.clone())
    other.rewards[1] *= -1e6
    changed = with_advantages(other, 0.99, 1.0).advantages
    assert torch.equal(changed[[0, 2]], found[[0, 2]])
    torch.testing.assert_close(changed[1], -found[1], rtol=1e-6, atol=1e-6)


def mirrored_trial(masks: list[list[float]], rewards: list[float]) -> Rollout:
    """Two trials of a task, one of which is paid what the other pays: a baseline of time alone is 0 for both.

    Observations are 0 while an episode runs, and 7 afterwards, where nobody looks.
    """
    mask = torch.tensor([masks])
    paid = torch.zeros_like(mask)
    for lane, sign in enumerate((1, -1)):
        paid[0, lane, mask[0, lane] > 0] = sign * torch.tensor(rewards)
    observations = (7 * (1 - mask)).unsqueeze(-1)
    nothing = torch.zeros_like(mask)
    return Rollout(observations, nothing.unsqueeze(-1), nothing, paid, mask, nothing)


def test_advantages_of_a_trial_by_hand() -> None:
    """Two episodes of at most 3 steps, the first of which ends early: after 2 steps, and after 1."""
    masks = [[1.0, 1.0, 0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]]
    trial = mirrored_trial(masks, [0.0, 0.0, 0.0, 8.0])
    rms = (85 / 4) ** 0.5  # of 1, 2, 4, 8
    found = trial_advantages(trial, 0.5, 1.0)
    expected = torch.tensor([[1.0, 2, 0, 4, 8, 0], [-1, 0, 0, -2, -4, -8]]) / rms
    torch.testing.assert_close(found[0], expected)
    # Without a discount the last reward counts for all steps, over the end of the first episode.
    expected = torch.tensor([[1.0, 1, 0, 1, 1, 0], [-1, 0, 0, -1, -1, -1]])
    torch.testing.assert_close(trial_advantages(trial, 1.0, 1.0)[0], expected)
    # With lambda 0 each step earns its own reward only: the values of all states are 0.
    expected = torch.tensor([[0.0, 0, 0, 0, 2, 0], [0, 0, 0, 0, 0, -2]])
    torch.testing.assert_close(trial_advantages(trial, 1.0, 0.0)[0], expected)


def test_a_trial_of_one_whole_episode_has_the_advantages_of_the_episode() -> None:
    whole = trajectory(lengths=torch.full((3, 4), 6))
    rollout = with_advantages(whole, 0.9, 0.7)
    torch.testing.assert_close(trial_advantages(rollout, 0.9, 0.7), rollout.advantages)


def test_gaps_of_a_trial_are_no_time() -> None:
    """Steps after the ends of episodes may hold anything, wherever they stand."""
    lengths = torch.tensor([[4, 4, 4, 4]] * 3)
    batch = with_advantages(trajectory(lengths=lengths, horizon=6), 0.9, 0.7)
    order = torch.tensor([0, 1, 4, 2, 3, 5])  # two episodes of two steps, each with a gap after it
    moved = each_tensor(lambda values: values[:, :, order], batch)
    moved.observations[moved.mask == 0] = 100
    found, expected = trial_advantages(moved, 0.9, 0.7), trial_advantages(batch, 0.9, 0.7)
    torch.testing.assert_close(found, expected[:, :, order])
    assert not found[moved.mask == 0].any()
    assert found.any()
