"""The linear baseline: numbers by hand."""

import pytest
import torch

from metarl.advantages.baseline import baseline_features, fitted_values, left_at_the_end
from metarl.advantages.estimates import explained_variance

pytestmark = pytest.mark.usefixtures("float64")


def test_features_by_hand() -> None:
    observations = torch.tensor([[[[0.5, -20.0], [11.0, 3.0], [0.0, 0.0]]]])
    found = baseline_features(observations, torch.tensor([0.0, 1.0, 2.0]), 0.5)
    assert found.dtype == torch.float64
    assert found[0, 0].tolist() == [
        [0.5, -10, 0.25, 100, 0, 0, 0, 1, 1.5],
        [10, 3, 100, 9, 0.01, 0.01**2, 0.01**3, 1, 1],
        [0, 0, 0, 0, 0.02, 0.02**2, 0.02**3, 1, 0],
    ]
    images = torch.zeros(2, 3, 4, 5, 6, dtype=torch.float32)
    assert baseline_features(images, torch.arange(4.0), 0.9).shape == (2, 3, 4, 65)


def test_what_is_left_at_the_end_by_hand() -> None:
    mask = torch.tensor([[[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]])
    assert left_at_the_end(torch.tensor([[1.0, 1.0]]), mask, 0.5).tolist() == [[[0.125, 0.25, 0.5], [0.25, 0.5, 0.0]]]
    assert not left_at_the_end(torch.tensor([[0.0, 0.0]]), mask, 0.5).any()


def test_values_are_those_of_a_line_through_the_other_episodes() -> None:
    """Three lanes on the lines 2 x + 1, 2 x + 1 and 2 x + 4: each is told the mean of the others."""
    shape = (1, 3, 100)
    observations = torch.rand(1, 1, 100, 1, generator=torch.Generator().manual_seed(0)).expand(*shape, 1)
    features = baseline_features(torch.cat([observations, observations[:, :, -1:]], 2), torch.zeros(101), 1.0)
    line = 2 * observations[0, 0, :, 0]
    lines = torch.stack([line + 1, line + 1, line + 4]).unsqueeze(0)
    found = fitted_values(features, lines, torch.ones(shape), torch.zeros(shape))
    expected = torch.stack([line + 2.5, line + 2.5, line + 1]).unsqueeze(0)
    torch.testing.assert_close(found[:, :, :-1], expected, rtol=0, atol=1e-5)


def test_an_episode_unlike_the_others_gets_no_wild_value() -> None:
    """Of 20 episodes of 100 steps, one is elsewhere: what hardly varies among the others says nothing about it."""
    draw = torch.Generator().manual_seed(0)
    size, shape = 12, (8, 20, 100)
    observations = 0.03 * torch.randn(8, 20, 101, size, generator=draw)
    observations[:, 0] += 5
    time = torch.arange(101.0)
    returns = (100 - time[:-1]) / 50 + 0.3 * torch.randn(shape, generator=draw).cumsum(-1) / 10
    features = baseline_features(observations, time, 0.99)
    values = fitted_values(features, returns, torch.ones(shape), torch.zeros(shape))[:, :, :-1]
    assert (explained_variance(returns, values, torch.ones(shape)) > 0.5).all()
    assert (values - returns)[:, 0].abs().max() < 3
