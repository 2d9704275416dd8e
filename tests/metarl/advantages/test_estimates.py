"""Returns, the linear baseline and generalised advantages: numbers by hand, and a plain loop in NumPy."""

from dataclasses import replace
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
import torch
from support import slow_baseline
from support.synthetic import by_hand
from torch import Tensor

from metarl.advantages import Advantages
from metarl.advantages.baseline import baseline_features, discounted_sums, fitted_values
from metarl.advantages.estimates import gae, normalise
from metarl.types import Rollout, each_tensor

pytestmark = pytest.mark.usefixtures("float64")


UNDISCOUNTED = Advantages(discount=1.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trajectory(
    tasks: int = 3, episodes: int = 4, horizon: int = 6, lengths: Tensor | None = None, seed: int = 0
) -> Rollout:
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
    ends = (torch.arange(1, horizon + 1) == lengths.unsqueeze(-1)) & (lengths < horizon).unsqueeze(-1)
    odd = (torch.arange(episodes) % 2 == 1).reshape(1, -1, 1)
    return Rollout(
        observations=observations[:, :, :-1],
        last_observations=observations[:, :, -1],
        actions=torch.zeros(tasks, episodes, horizon, 1),
        log_probs=torch.zeros(tasks, episodes, horizon),
        rewards=rewards,
        terminated=ends & ~odd,
        truncated=ends & odd,
        mask=mask,
    )


def judged(rollout: Rollout, options: Advantages = Advantages()) -> Tensor:
    (found,) = options.of_episodes(None, [rollout])
    assert found.advantages is not None
    return found.advantages


def trial(rollout: Rollout, options: Advantages) -> Tensor:
    """Advantages of a trial that one rollout holds as a whole."""
    (found,) = options.of_trials(None, [rollout])
    assert found.advantages is not None
    return found.advantages


def test_discounted_sums_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 4.0]])
    assert discounted_sums(rewards, 0.5).tolist() == [[2.75, 3.5, 3.0], [1.0, 2.0, 4.0]]
    assert discounted_sums(rewards, 1.0).tolist() == [[6, 5, 3], [4, 4, 4]]
    assert discounted_sums(rewards, 0.0).tolist() == rewards.tolist()
    assert rewards[0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 100])
def test_discounted_sums_are_those_of_a_loop_over_time(length: int) -> None:
    rewards = torch.randn(2, 3, length, dtype=torch.float64, generator=torch.Generator().manual_seed(length))
    expected, following = torch.zeros_like(rewards), torch.zeros(2, 3, dtype=torch.float64)
    for step in reversed(range(length)):
        following = expected[..., step] = rewards[..., step] + 0.97 * following
    torch.testing.assert_close(discounted_sums(rewards, 0.97), expected, rtol=1e-12, atol=1e-12)


def gae_of(
    rewards: list[float], values: list[float], last: float, mask: list[float], options: Advantages
) -> list[float]:
    rows = [torch.tensor(one).reshape(1, 1, -1) for one in (rewards, values, mask)]
    found = gae(rows[0], rows[1], torch.tensor([[last]]), rows[2], options.discount, options.gae_lambda)
    return found.flatten().tolist()


def test_gae_by_hand() -> None:
    half = Advantages(discount=0.5, gae_lambda=0.5)
    # Errors: 1 + 0.5 * 1 - 0.5 = 1; 2 + 0.5 * 2 - 1 = 2; 3 - 2 = 1. The horizon ends the task.
    assert gae_of([1, 2, 3], [0.5, 1, 2], 0, [1, 1, 1], half) == [1 + 0.25 * 2.25, 2 + 0.25 * 1, 1]
    # Terminated after two steps: no value lies beyond, and what stands in the third step does not matter.
    assert gae_of([1, 2, 0], [0.5, 1, 9], 0, [1, 1, 0], half) == [1.25, 1, 0]
    # Truncated there, where the state reached is worth 4: the last error is 2 + 0.5 * 4 - 1 = 3.
    assert gae_of([1, 2, 0], [0.5, 1, 9], 4, [1, 1, 0], half) == [1.75, 3, 0]
    # One-step errors, and the reward-to-go less the baseline.
    assert gae_of([1, 2, 0], [0.5, 1, 9], 4, [1, 1, 0], Advantages(discount=0.5, gae_lambda=0)) == [1, 3, 0]
    assert gae_of([1, 2, 0], [0.5, 1, 9], 4, [1, 1, 0], Advantages(discount=0.5, gae_lambda=1)) == [2.5, 3, 0]
    assert gae_of([7, 0, 0], [1, 9, 9], 0, [1, 0, 0], half) == [6, 0, 0]


def test_normalised_advantages_by_hand() -> None:
    advantages = torch.tensor([[[1.0, 3.0], [50.0, 60.0]], [[5.0, 5.0], [7.0, 3.0]], [[4.0, 4.0], [4.0, 9.0]]])
    mask = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 0.0]]])
    found = normalise(advantages, mask, torch.zeros(3))
    root = 2**0.5
    torch.testing.assert_close(found[0], torch.tensor([[-1.0, 1.0], [0.0, 0.0]]))
    torch.testing.assert_close(found[1], torch.tensor([[0.0, 0.0], [root, -root]]))
    assert found[2].tolist() == [[0, 0], [0, 0]]
    assert normalise(advantages, torch.zeros_like(mask), torch.zeros(3)).tolist() == torch.zeros_like(mask).tolist()
    # A smaller deviation than the smallest that counts is taken for that: 1 and 2 in units of 4 and 1.
    smallest = normalise(advantages, mask, torch.tensor([4.0, 0.0, 4.0]))
    torch.testing.assert_close(smallest[:2], torch.stack([found[0] / 4, found[1]]))


HARD = {
    "ends at the first step": trajectory(lengths=torch.ones(3, 4, dtype=torch.int64)),
    "constant observations": replace(trajectory(), observations=torch.ones(3, 4, 6, 2)),
    "no observation": replace(
        trajectory(), observations=torch.zeros(3, 4, 6, 0), last_observations=torch.zeros(3, 4, 0)
    ),
    "a task without a step": trajectory(lengths=torch.tensor([[0] * 4, [6] * 4, [3] * 4])),
    "one step in all": trajectory(1, 1, 1),
    "huge observations": replace(trajectory(), observations=1e30 * trajectory().observations),
    "huge rewards": replace(trajectory(), rewards=1e30 * trajectory().rewards),
    "tiny rewards": replace(trajectory(), rewards=1e-30 * trajectory().rewards),
    "no reward": replace(trajectory(), rewards=torch.zeros(3, 4, 6)),
    "long": trajectory(1, 2, 5000, torch.tensor([[5000, 4000]])),
    "more features than steps": replace(
        trajectory(),
        observations=torch.randn(3, 4, 6, 40, generator=generator()),
        last_observations=torch.randn(3, 4, 40, generator=generator()),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", HARD)
def test_no_batch_is_refused(name: str, dtype: torch.dtype) -> None:
    batch = in_dtype(HARD[name], dtype)
    found = judged(batch, UNDISCOUNTED)
    assert found.dtype == dtype
    assert found.isfinite().all()
    assert (found[batch.mask == 0] == 0).all()
    assert found.abs().max() < 100
    if name == "no reward":
        assert (found == 0).all()


def test_sums_of_large_rewards_do_not_overflow() -> None:
    batch = replace(trajectory(2, 3, 50, torch.full((2, 3), 50)), rewards=torch.full((2, 3, 50), 3e37))
    batch.rewards[:, 0] = -3e37
    found = judged(in_dtype(batch, torch.float32), UNDISCOUNTED)
    assert found.isfinite().all()
    assert (found[:, 0, :10] < 0).all()


def in_dtype(batch: Rollout, dtype: torch.dtype) -> Rollout:
    return each_tensor(lambda values: values.to(dtype) if values.is_floating_point() else values, batch)


def reference(batch: Rollout, options: Advantages) -> np.ndarray:
    """The same estimate in plain loops, with NumPy's own solver."""
    found = np.zeros(batch.rewards.shape)
    for task, lengths in enumerate(batch.mask.sum(2).int().tolist()):
        seen = torch.cat([batch.observations[task], batch.last_observations[task].unsqueeze(1)], dim=1).numpy()
        episodes = [slow_baseline.advantages(
            [np.concatenate([seen[index, :length], seen[index, -1:]]) for index, length in enumerate(lengths)],
            [batch.rewards[task, index, :length].numpy() for index, length in enumerate(lengths)],
            batch.truncated[task].any(1).tolist(),
            batch.rewards.shape[2],
            options.discount,
            options.gae_lambda,
        )]  # fmt: skip
        for index, own in enumerate(episodes[0]):
            found[task, index, : len(own)] = own
    return found


@pytest.mark.parametrize("options", [Advantages(), Advantages(discount=0.9, gae_lambda=0.7)], ids=["default", "lambda"])
def test_advantages_equal_plain_loops(options: Advantages) -> None:
    batch = trajectory(3, 8, 6)
    assert batch.truncated.any()
    assert (batch.truncated == 0).any()
    found = judged(batch, options)
    np.testing.assert_allclose(found.numpy(), reference(batch, options), rtol=0, atol=1e-4)
    # Bootstrapping matters: the same episodes, terminated instead, give other numbers.
    ended = replace(batch, truncated=torch.zeros_like(batch.truncated), terminated=batch.terminated | batch.truncated)
    assert not torch.allclose(judged(ended, options), found, atol=1e-2)


def test_nothing_but_advantages_and_their_sign_is_added() -> None:
    batch = trajectory()
    (found,) = Advantages().of_episodes(None, [batch])
    for name, values in vars(batch).items():
        assert name in ("advantages", "explained_variance") or getattr(found, name) is values


def test_an_end_at_the_horizon_is_the_end_of_the_task_however_it_is_marked() -> None:
    batch = trajectory(lengths=torch.full((3, 4), 6))
    last = torch.zeros_like(batch.truncated)
    last[:, :, -1] = True
    found = [judged(replace(batch, **{mark: last})) for mark in ("truncated", "terminated")]
    assert torch.equal(*found)
    assert torch.equal(found[0], judged(batch))


def test_baselines_of_one_step_by_hand() -> None:
    """Episodes of one step have one time: a baseline of time is the mean of the others."""
    paid = torch.tensor([-1.0, 0.0, 1.0, 2.0]).reshape(1, 4, 1)
    ones, nothing = torch.ones(1, 4, 1), torch.zeros(1, 4, 1)
    batch = by_hand(paid.unsqueeze(-1), nothing, nothing, paid, ones, nothing)
    for baseline in ("time", "none"):
        torch.testing.assert_close(judged(batch, Advantages(baseline=baseline)), (paid - 0.5) / (5 / 4) ** 0.5)


@pytest.mark.parametrize("shape", [(3, 20, 100), (3, 20, 1), (3, 2, 10), (3, 1, 50), (3, 5, 200)], ids=str)
@pytest.mark.parametrize("reward", [1.0, -3.0, 1e-20, 1e6])
@pytest.mark.parametrize("discount", [1.0, 0.99, 0.0])
def test_constant_rewards_tell_nothing(shape: tuple[int, int, int], reward: float, discount: float) -> None:
    """They gave noise of standard deviation one."""
    observations, nothing = torch.randn(*shape, 6, generator=generator()), torch.zeros(shape)
    batch = by_hand(observations, nothing, nothing, torch.full(shape, reward), torch.ones(shape), nothing)
    assert judged(batch, Advantages(discount=discount)).abs().max() < 0.01


def test_constant_rewards_tell_nothing_where_episodes_are_cut_anywhere() -> None:
    """What lies beyond is worth what the baseline says: here 1 / (1 - gamma), though no episode saw that much."""
    batch = trajectory(3, 20, 50, torch.randint(1, 50, (3, 20), generator=generator()))
    batch = replace(batch, rewards=batch.mask.clone(), truncated=batch.terminated | batch.truncated)
    batch = replace(batch, terminated=torch.zeros_like(batch.truncated))
    assert judged(batch).abs().max() < 0.05
    ended = replace(batch, terminated=batch.truncated, truncated=torch.zeros_like(batch.truncated))
    assert judged(ended).abs().max() > 1


@pytest.mark.parametrize(("size", "episodes", "least"), [(9, 20, 0.7), (2, 20, 0.8), (9, 40, 0.7)])
def test_the_baseline_does_not_swallow_what_actions_earned(size: int, episodes: int, least: float) -> None:
    """Features over rows are 1 and more here. Fitted to the same episodes, it left a correlation of 0.16."""
    shape = (100, episodes, 1)
    observations, earned = (torch.randn(*shape, *more, generator=generator(3)) for more in ((size,), ()))
    weights, nothing = torch.linspace(-0.3, 0.4, size), torch.zeros(shape)
    batch = by_hand(observations, nothing, nothing, observations @ weights + earned, torch.ones(shape), nothing)
    found = judged(batch, Advantages(discount=0.0))
    pairs = torch.stack([found.flatten(1), earned.flatten(1)], dim=1)
    assert torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs]).mean() > least


def test_the_value_of_an_episode_does_not_depend_on_what_was_earned_in_it() -> None:
    """But for the strength of the penalty, which is chosen for all, and which a small change leaves as it is."""
    batch = trajectory(1, 6, 50, torch.full((1, 6), 50))
    features = baseline_features(
        torch.cat([batch.observations, batch.last_observations.unsqueeze(2)], 2), torch.arange(51.0), 0.9
    )
    nothing = torch.zeros_like(batch.mask)
    before = fitted_values(features, batch.rewards, batch.mask, nothing)
    changed = batch.rewards.clone()
    changed[0, 2] += 0.01
    after = fitted_values(features, changed, batch.mask, nothing)
    same = torch.tensor([torch.allclose(one, other, atol=1e-6) for one, other in zip(before[0], after[0], strict=True)])
    assert same.tolist() == [False, False, True, False, False, False]


def test_pictures_get_a_baseline_of_time() -> None:
    """A linear one of 96 x 96 x 3 pixels would solve 55,300 equations for each task."""
    small, batch = trajectory(2, 3, 4), trajectory(2, 3, 4)
    large = replace(batch, observations=torch.zeros(2, 3, 4, 3, 96, 96), last_observations=torch.zeros(2, 3, 3, 96, 96))
    assert torch.equal(judged(large), judged(small, Advantages(baseline="time")))
    assert torch.equal(judged(small), judged(small, Advantages(baseline="linear")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discount": 1.1}, r"discount and gae_lambda must be in \[0, 1\], not 1.1 and 1.0"),
        ({"gae_lambda": -0.1}, r"discount and gae_lambda must be in \[0, 1\], not 0.99 and -0.1"),
        ({"discount": float("nan")}, "discount and gae_lambda must be in"),
        ({"baseline": "critic"}, "baseline='critic': expected one of auto, linear, time, none"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Advantages(**options)


def test_tasks_do_not_see_each_other() -> None:
    batch = trajectory()
    found = judged(batch)
    permuted = judged(each_tensor(itemgetter([2, 0, 1]), batch))
    torch.testing.assert_close(permuted, found[[2, 0, 1]], rtol=1e-12, atol=1e-12)
    other = replace(batch, rewards=batch.rewards.clone())
    other.rewards[1] *= -1e6
    changed = judged(other)
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
    return by_hand(observations, nothing.unsqueeze(-1), nothing, paid, mask, nothing)


def test_advantages_of_a_trial_by_hand() -> None:
    """Two episodes of at most 3 steps, the first of which ends early: after 2 steps, and after 1."""
    masks = [[1.0, 1.0, 0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]]
    rollout = mirrored_trial(masks, [0.0, 0.0, 0.0, 8.0])
    rms = (85 / 4) ** 0.5  # of 1, 2, 4, 8
    found = trial(rollout, Advantages(discount=0.5))
    expected = torch.tensor([[1.0, 2, 0, 4, 8, 0], [-1, 0, 0, -2, -4, -8]]) / rms
    torch.testing.assert_close(found[0], expected)
    # Without a discount the last reward counts for all steps, over the end of the first episode.
    expected = torch.tensor([[1.0, 1, 0, 1, 1, 0], [-1, 0, 0, -1, -1, -1]])
    torch.testing.assert_close(trial(rollout, UNDISCOUNTED)[0], expected)
    # With lambda 0 each step earns its own reward only: the values of all states are 0.
    expected = torch.tensor([[0.0, 0, 0, 0, 2, 0], [0, 0, 0, 0, 0, -2]])
    torch.testing.assert_close(trial(rollout, Advantages(discount=1.0, gae_lambda=0.0))[0], expected)


def test_a_trial_of_one_episode_has_the_advantages_of_the_episode() -> None:
    """Also where it was cut: the state after its last step is then worth something."""
    options = Advantages(discount=0.9, gae_lambda=0.7)
    for batch in (trajectory(), trajectory(lengths=torch.full((3, 4), 6))):
        torch.testing.assert_close(trial(batch, options), judged(batch, options))


def test_only_the_last_episode_of_a_trial_can_be_cut_short() -> None:
    """What follows a truncated episode within a trial is the next episode, and not an unknown future."""
    options = Advantages(discount=0.9, gae_lambda=0.7)
    first, second = trajectory(seed=1), trajectory(seed=2)
    never = torch.zeros_like(first.truncated)

    def found(*marks: Tensor) -> Tensor:
        trials = [replace(one, truncated=mark) for one, mark in zip((first, second), marks, strict=True)]
        return torch.cat([rollout.advantages for rollout in options.of_trials(None, trials)], dim=2)

    assert second.truncated.any() and first.truncated.any()
    assert torch.equal(found(never, second.truncated), found(first.truncated, second.truncated))
    assert not torch.allclose(found(never, never), found(never, second.truncated), atol=1e-2)


def test_gaps_of_a_trial_are_no_time() -> None:
    """Steps after the ends of episodes may hold anything, wherever they stand."""
    options = Advantages(discount=0.9, gae_lambda=0.7)
    batch = trajectory(lengths=torch.tensor([[4, 4, 4, 4]] * 3), horizon=6)
    batch = replace(batch, truncated=torch.zeros_like(batch.truncated))
    order = torch.tensor([0, 1, 4, 2, 3, 5])  # two episodes of two steps, each with a gap after it
    names = ("observations", "rewards", "mask")
    moved = replace(batch, **{name: getattr(batch, name)[:, :, order] for name in names})
    moved.observations[moved.mask == 0] = 100
    found, expected = trial(moved, options), trial(batch, options)
    torch.testing.assert_close(found, expected[:, :, order])
    assert not found[moved.mask == 0].any()
