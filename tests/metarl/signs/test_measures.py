"""Signs of whether policies can learn, against plain loops."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from metarl.advantages import Advantages
from metarl.algorithms.gradient.cavia import CAVIA
from metarl.algorithms.maml import MAML
from metarl.algorithms.multitask import MultiTask
from metarl.algorithms.reptile import Reptile
from metarl.algorithms.rl2 import RL2
from metarl.networks import Network
from metarl.signs import Ends, action_std, clipped_actions, explained_variance, inner_signal, signs
from metarl.types import Experience, Learner, Params, Rollout, Spec
from tests.support import slow_baseline, synthetic

SPEC = synthetic.CONTINUOUS
ENDS = Ends(torch.tensor([-1.0, -0.5]), torch.tensor([1.0, 2.0]))
NETWORK = Network(hidden=(8,), activation="tanh")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rollouts(tasks: int = 3) -> list[Rollout]:
    return [synthetic.rollout(SPEC, tasks, generator(seed), episodes=4, horizon=6) for seed in range(2)]


def experience(learner: Learner, tasks: int = 10, episodes: int = 6) -> tuple[Params, Experience]:
    """Long enough episodes of the learner's own policies, and rewards that depend on the task and on actions."""
    params = learner.init(generator())
    parts = [synthetic.rollout(learner.spec, tasks, generator(seed), episodes, 20) for seed in (1, 2)]
    given = Experience(descriptors=torch.zeros(tasks, 0), supports=tuple(parts[:1]), query=parts[1])
    return params, synthetic.acted(learner, params, given, generator(3))


def test_clipped_actions_by_counting() -> None:
    outside = steps = 0
    given = rollouts()
    for part in given:
        for place in part.mask.nonzero().tolist():
            steps += 1
            action = part.actions[tuple(place)].tolist()
            outside += (not -1 <= action[0] <= 1) + (not -0.5 <= action[1] <= 2)
    found = clipped_actions(SPEC, given, ENDS)
    assert found is not None
    assert 0.1 < float(found) < 0.9
    assert float(found) == pytest.approx(outside / (2 * steps))


def test_clipped_actions_of_a_wide_gaussian() -> None:
    part = synthetic.rollout(SPEC, 4, generator(), episodes=100, horizon=100)
    part = replace(part, actions=torch.randn(part.actions.shape, generator=generator(1)))
    found = clipped_actions(SPEC, [part], Ends(-torch.ones(2), torch.ones(2)))
    assert found is not None
    assert float(found) == pytest.approx(1 - math.erf(0.5**0.5), abs=0.01)


@pytest.mark.parametrize("spec", [synthetic.DISCRETE, replace(SPEC, policy="squashed")])
def test_actions_that_cannot_be_clipped_have_no_share(spec: Spec) -> None:
    part = synthetic.rollout(spec, 2, generator())
    assert clipped_actions(spec, [part], ENDS) is None
    assert action_std(spec, [part], ENDS) is None
    assert clipped_actions(SPEC, rollouts(), None) is None
    assert action_std(SPEC, rollouts(), None) is None


def test_action_std_is_in_half_ranges() -> None:
    stds = torch.tensor([0.5, 4.0])
    part = synthetic.rollout(SPEC, 4, generator(), episodes=100, horizon=100)
    noise = torch.randn(part.actions.shape, generator=generator(1))
    part = replace(part, log_probs=Normal(0.0, stds).log_prob(stds * noise).sum(-1))
    found = action_std(SPEC, [part], ENDS)
    assert found is not None
    # Half ranges are 1 and 1.25.
    assert float(found) == pytest.approx((0.5 * 4.0 / 1.25) ** 0.5, rel=0.01)


def slow_explained_variance(rollout: Rollout, discount: float) -> list[float]:
    """Each task's share, with the values of the slow baseline."""
    told = []
    for task in range(len(rollout.rewards)):
        observations, returns, cut = [], [], []
        for episode, mask in enumerate(rollout.mask[task]):
            steps = int(mask.sum())
            seen = torch.cat([rollout.observations[task, episode], rollout.last_observations[task, episode][None]])
            last = rollout.last_observations[task, episode][None]
            observations.append(torch.cat([seen[:steps], last]).double().numpy())
            rewards = rollout.rewards[task, episode, :steps].double().tolist()
            returns.append(np.array([sum(discount**k * r for k, r in enumerate(rewards[t:])) for t in range(steps)]))
            cut.append(bool(rollout.truncated[task, episode, :-1].any()))
        values = slow_baseline.values(observations, returns, cut, rollout.mask.shape[2], discount)
        expected, known = [], []
        for value, own, ends in zip(values, returns, cut, strict=True):
            steps = len(own)
            expected += [own[t] + ends * discount ** (steps - t) * value[-1] for t in range(steps)]
            known += list(value[:-1])
        told.append(1 - float(np.var(np.array(expected) - np.array(known)) / np.var(expected)))
    return told


def test_explained_variance_against_plain_loops() -> None:
    part = synthetic.rollout(SPEC, 3, generator(), episodes=5, horizon=12)
    early = part.terminated & (torch.arange(5) % 2 == 0).reshape(1, -1, 1)
    part = replace(part, terminated=part.terminated & ~early, truncated=early, advantages=None)
    rewards = (part.rewards + 3 * part.observations[..., 0]) * part.mask
    part = replace(part, rewards=rewards)
    (judged,) = Advantages(discount=0.9).of_episodes(None, [part])
    assert judged.explained_variance is not None
    expected = slow_explained_variance(part, 0.9)
    assert judged.explained_variance.tolist() == pytest.approx(expected, rel=1e-4)
    found = explained_variance([judged, judged])
    assert found is not None
    assert float(found) == pytest.approx(sum(expected) / 3, rel=1e-4)


def test_explained_variance_has_its_ends() -> None:
    part = replace(synthetic.rollout(SPEC, 2, generator(), episodes=30, horizon=8), advantages=None)
    # A reward that time explains; one of the tasks earns nothing at all.
    worth = torch.tensor([1.0, 0.0]).reshape(-1, 1, 1) * torch.arange(8.0) * torch.ones_like(part.rewards)
    full = replace(part, rewards=worth, mask=torch.ones_like(part.mask), terminated=torch.zeros_like(part.terminated))
    (judged,) = Advantages().of_episodes(None, [full])
    assert judged.explained_variance is not None
    assert float(judged.explained_variance[0]) == pytest.approx(1.0, abs=1e-4)
    assert math.isnan(judged.explained_variance[1])
    found = explained_variance([judged])
    assert found is not None
    assert float(found) == pytest.approx(1.0, abs=1e-4)
    (unjudged,) = Advantages(baseline="none").of_episodes(None, [full])
    assert explained_variance([unjudged]) is None


def slow_gradient(params: Params, rollout: Rollout) -> Tensor:
    """The gradient of one task's surrogate, of all parameters in one row."""
    (judged,) = Advantages().of_episodes(None, [rollout])
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    hidden = torch.tanh(rollout.observations @ leaves["hidden_0.weight"].T + leaves["hidden_0.bias"])
    means = hidden @ leaves["head.weight"].T + leaves["head.bias"]
    log_probs = Normal(means, leaves["policy.log_std"].exp()).log_prob(rollout.actions).sum(-1)
    assert judged.advantages is not None
    ((log_probs * judged.advantages).sum() / rollout.mask.sum()).backward()
    return torch.cat([value.grad.flatten() for value in leaves.values() if value.grad is not None])


def test_inner_signal_is_the_cosine_of_the_gradients_of_two_halves() -> None:
    learner = MAML(network=NETWORK).build(SPEC)
    params, given = experience(learner, tasks=11, episodes=7)
    support = given.supports[0]
    assert isinstance(support, Rollout)
    cosines = []
    for task in range(2):  # one in five
        halves = []
        for episodes in (slice(0, 3), slice(3, 6)):  # the seventh is left out
            fields = {
                name: None if value is None or name == "advantages" else value[task : task + 1, episodes]
                for name, value in vars(support).items()
            }
            halves.append(slow_gradient(params, Rollout(**fields)))
        cosines.append(float(torch.nn.functional.cosine_similarity(*halves, dim=0)))
    found = inner_signal(learner, params, given)
    assert found is not None
    assert abs(float(found)) < 0.999
    assert float(found) == pytest.approx(sum(cosines) / 2, abs=1e-4)


def test_halves_that_are_the_same_have_a_cosine_of_one() -> None:
    for algorithm in (MAML(network=NETWORK), Reptile(network=NETWORK), CAVIA(network=NETWORK)):
        learner = algorithm.build(SPEC)
        params, given = experience(learner)
        support = given.supports[0]
        twice = {
            name: None if value is None else torch.cat([value, value], dim=1) for name, value in vars(support).items()
        }
        given = replace(given, supports=(Rollout(**twice),))
        found = inner_signal(learner, params, given)
        assert found is not None
        assert float(found) == pytest.approx(1.0, abs=1e-4)


def test_inner_signal_of_noise_is_zero_on_average() -> None:
    learner = MAML(network=NETWORK).build(SPEC)
    found = []
    for seed in range(40):
        params, given = learner.init(generator()), synthetic.rollout(SPEC, 20, generator(seed), 10, 10)
        whole = Experience(descriptors=torch.zeros(20, 0), supports=(given,), query=given)
        signal = inner_signal(learner, params, whole)
        assert signal is not None
        found.append(float(signal))
    # 160 cosines of independent halves.
    assert abs(np.mean(found)) < 4 * np.std(found) / len(found) ** 0.5


def test_learners_without_an_inner_step_have_no_signal() -> None:
    for algorithm in (RL2(hidden=4), MultiTask(network=NETWORK)):
        learner = algorithm.build(SPEC)
        parts = tuple(rollouts())
        supports = parts[:1] if learner.adaptations else ()
        given = Experience(descriptors=torch.zeros(3, 0), supports=supports, query=parts[1])
        assert inner_signal(learner, learner.init(generator()), given) is None
    learner = MAML(network=NETWORK).build(SPEC)
    params, given = experience(learner, episodes=1)
    assert inner_signal(learner, params, given) is None


def test_signs_are_those_that_there_are() -> None:
    learner = MAML(network=NETWORK).build(SPEC)
    params, given = experience(learner)
    assert list(signs(learner, params, given, ENDS)) == [
        "signs/clipped_actions",
        "signs/action_std",
        "signs/inner_signal",
    ]  # nothing has judged these episodes
    assert list(signs(learner, params, given, None)) == ["signs/inner_signal"]
