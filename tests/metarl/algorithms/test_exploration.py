"""E-MAML's term, by enumeration: every episode of a small MDP, weighted by its probability under the policy.

Every combination of support and query episodes is a task of its own here, so that one call judges them all.
"""

import itertools
import math
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from support import synthetic
from torch import Tensor

from metarl.advantages import Advantages, exploration_credit
from metarl.algorithms.maml import MAML
from metarl.networks.options import Network
from metarl.outer import TRPO, Adam, default_outer
from metarl.types import Experience, Spec

pytestmark = pytest.mark.usefixtures("float64")

SURROGATES = ("log_likelihood", "likelihood_ratio", "dice")
SPEC = Spec((2,), 2, "discrete")
TABLE = Network(hidden=())
"""Of a one-hot state: a table of logits."""
TRANSITIONS = torch.tensor([[[0.75, 0.25], [0.25, 0.75]], [[0.5, 0.5], [0.125, 0.875]]]).double()
"""``[state, action, next state]``"""
REWARDS = torch.tensor([[1.0, 0.3], [2.5, 0.6]]).double()
"""``[state, action]``"""


class Paths(NamedTuple):
    """All episodes of two steps from state 0."""

    states: Tensor  # [path, time]
    actions: Tensor  # [path, time]
    rewards: Tensor  # [path, time]
    chances: Tensor  # [path] of the transitions, whatever the policy


def paths() -> Paths:
    rows = list(itertools.product((0,), range(2), range(2), range(2)))
    first, action, second, last = torch.tensor(rows).T
    states, actions = torch.stack([first, second], 1), torch.stack([action, last], 1)
    return Paths(states, actions, REWARDS[states, actions], TRANSITIONS[first, action, second])


PATHS = paths()


def log_policy(params):
    """Log-probabilities ``[..., state, action]``."""
    return (params["head.weight"].mT + params["head.bias"].unsqueeze(-2)).log_softmax(-1)


def probabilities(params):
    """Of all paths, ``[..., path]``."""
    chosen = log_policy(params)[..., PATHS.states, PATHS.actions]
    return PATHS.chances * chosen.sum(-1).exp()


def mean_return(params):
    return (probabilities(params) * PATHS.rewards.sum(-1)).sum(-1)


def rollout(chosen, params):
    """The paths with numbers ``[task, episode]``, acted by policies ``[task, ...]``; advantages are returns-to-go."""
    states, actions, rewards = PATHS.states[chosen], PATHS.actions[chosen], PATHS.rewards[chosen]
    rows = torch.arange(len(chosen)).reshape(-1, 1, 1)
    acted = log_policy(params).expand(len(chosen), 2, 2)[rows, states, actions].detach()
    observations = torch.nn.functional.one_hot(states, 2).double()
    returns = rewards + torch.stack([rewards[..., 1], torch.zeros_like(rewards[..., 1])], dim=-1)
    return synthetic.by_hand(observations, actions, acted, rewards, torch.ones_like(rewards), returns)


def learner(surrogate, step_size=0.7, steps=1, **options):
    maml = MAML(
        steps=steps, step_size=step_size, schedule=(1.0,), surrogate=surrogate, network=TABLE,
        advantages=Advantages(discount=1.0, baseline="none"), **options,
    )  # fmt: skip
    return maml.build(SPEC)


def policy():
    generator = torch.Generator().manual_seed(3)
    return {
        "head.weight": (0.5 * torch.randn(2, 2, generator=generator)).requires_grad_(),
        "head.bias": (0.5 * torch.randn(2, generator=generator)).requires_grad_(),
    }


def stacked(params, tasks):
    return {name: value.expand(tasks, *value.shape) for name, value in params.items()}


def adapted(one, params, draws):
    """Adapt to every combination of ``draws``, lists of numbers of paths ``[task, episode]``, one for each step.

    Returns rollouts, the states before and after them, and the probability of each combination, with their graphs.
    """
    state, chance, supports = one.begin(params, torch.zeros(len(draws[0]), 0)), 1.0, []
    states = [state]
    for chosen in draws:
        of_paths = probabilities(state.params).expand(len(chosen), len(PATHS.chances))
        chance = chance * of_paths.gather(1, chosen).prod(1)
        supports.append(rollout(chosen, state.params))
        states.append(one.adapt(states[-1], supports[-1]))
        state = states[-1]
    return supports, states, chance


def unit(support, query):
    """What credit is divided by, per step: of each task's returns-to-go, which are the advantages here."""
    returns = torch.cat([support.advantages.flatten(1), query.advantages.flatten(1)], dim=1)
    single = support.advantages.shape[1] == 1
    return returns.square().mean(1).sqrt() if single else returns.std(1, correction=0)


def combinations(*episodes):
    """Numbers of paths ``[task, episode]`` for each draw of so many episodes, in all combinations."""
    rows = torch.tensor(list(itertools.product(range(len(PATHS.chances)), repeat=sum(episodes))))
    return list(rows.split(episodes, dim=1))


def gradient(value, params):
    found = torch.autograd.grad(value, list(params.values()), retain_graph=True, materialize_grads=True)
    return torch.cat([each.flatten() for each in found])


def assert_same_gradients(one, other, params):
    torch.testing.assert_close(gradient(one, params), gradient(other, params))


def exact(surrogate, params, episodes, **options):
    """The gradient of the mean return after adaptation, and what the meta-loss says it is: both enumerated."""
    *draws, last = combinations(*episodes, 1)
    one, plain = (learner(surrogate, steps=len(draws), exploration_term=weight, **options) for weight in (1.0, 0.0))
    supports, states, chance = adapted(one, params, draws)
    moved = states[-1].params
    query = rollout(last, moved)
    given = Experience(descriptors=torch.zeros(len(last), 0), supports=tuple(supports), query=query)
    weights = (chance * probabilities(moved).gather(1, last).squeeze(1)).detach()
    assert weights.sum().item() == pytest.approx(1)
    without, both = (learned.meta_loss(params, given)[0] for learned in (plain, one))
    # The surrogate is a mean over two steps. The term is in units of the deviation of returns-to-go.
    told = one.init.__self__.exploration_loss
    terms = [told(state, support, query) for state, support in zip(states, supports, strict=False)]
    assert_same_gradients((both - without).sum(), sum(terms).sum(), params)
    terms = [unit(support, query) * term for support, term in zip(supports, terms, strict=True)]
    found = [-2 * (weights * loss).sum() for loss in (without, sum(terms))]
    copies = len(PATHS.chances)  # of each support: one for each query
    value = (chance * mean_return(moved)).sum() / copies
    fixed = (chance * mean_return(moved).detach()).sum() / copies
    return [gradient(total, params) for total in (value, fixed, *found)]


@pytest.mark.parametrize("episodes", [(1,), (2,), (1, 1)], ids=str)
def test_with_the_log_likelihood_it_is_the_gradient_of_the_return_after_adaptation(episodes):
    """Of one step on one episode, on two, and of two steps."""
    value, _, surrogate, term = exact("log_likelihood", policy(), episodes)
    torch.testing.assert_close(surrogate + term, value)
    assert term.norm() > 0.1 * value.norm()


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_the_term_is_the_same_for_every_surrogate(surrogate):
    """The gradient of the probabilities of what was seen before, where the return after it is held as it is."""
    _, fixed, _, term = exact(surrogate, policy(), (2,))
    torch.testing.assert_close(term, fixed)


def test_dice_holds_the_term_to_first_order_in_the_step_size():
    """Twice the step makes the difference four times as large; that of the log-likelihood alone, only twice."""

    def apart(surrogate, step_size):
        value = exact("log_likelihood", policy(), (1,), step_size=step_size)[0]
        return (exact(surrogate, policy(), (1,), step_size=step_size)[2] - value).norm()

    ratios = {name: apart(name, 2e-3) / apart(name, 1e-3) for name in ("dice", "log_likelihood")}
    assert ratios["dice"].item() == pytest.approx(4, abs=0.05)
    assert ratios["log_likelihood"].item() == pytest.approx(2, abs=0.05)


def test_credit_by_hand():
    """The query's returns are 3 and 1; those of the other support episode 4 and 10."""
    rewards = torch.tensor([[[2.0, 1.0], [0.0, 1.0]]])
    query = rollout(torch.tensor([[0, 1]]), policy())
    support = replace(query, rewards=torch.tensor([[[7.0, 3.0], [1.0, 3.0]]]))
    query = replace(query, rewards=rewards)
    deviation = torch.tensor([3.0, 1.0, 1.0, 1.0, 10.0, 3.0, 4.0, 3.0]).std(correction=0)
    found = exploration_credit(support, query, 1.0)
    torch.testing.assert_close(found, torch.tensor([[2.0 - 4.0, 2.0 - 10.0]]) / (2 * deviation))
    alone = replace(support, rewards=support.rewards[:, :1], mask=support.mask[:, :1])
    size = torch.tensor([3.0, 1.0, 1.0, 1.0, 10.0, 3.0]).square().mean().sqrt()
    torch.testing.assert_close(exploration_credit(alone, query, 1.0), torch.tensor([[2.0]]) / (2 * size))
    halved = exploration_credit(support, query, 0.5)
    deviation = torch.tensor([2.5, 1.0, 0.5, 1.0, 8.5, 3.0, 2.5, 3.0]).std(correction=0)
    torch.testing.assert_close(halved, torch.tensor([[1.5 - 2.5, 1.5 - 8.5]]) / (2 * deviation))


def test_what_is_after_the_end_counts_for_nothing():
    query = rollout(torch.tensor([[0, 1]]), policy())
    ended = replace(query, mask=torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]))
    other = replace(ended, rewards=ended.rewards + torch.tensor([[[0.0, 100.0], [0.0, 0.0]]]))
    torch.testing.assert_close(exploration_credit(other, other, 0.9), exploration_credit(ended, ended, 0.9))


def after_practice(surrogate, weight, steps=150):
    """The mean return after adaptation to a single pull, once a policy has learned that began by being cautious.

    One of two arms pays 1, the other nothing, and a third one always pays 0.6: who pulls it learns nothing. What a
    pull tells is held against 0.5. All pulls are enumerated, so nothing here is random.
    """
    one = MAML(step_size=10.0, surrogate=surrogate, network=TABLE, exploration_term=weight,
               advantages=Advantages(discount=1.0)).build(Spec((1,), 3, "discrete"))  # fmt: skip
    goal, before, after = torch.tensor(list(itertools.product(range(2), range(3), range(3)))).T
    params = {"head.weight": torch.zeros(3, 1), "head.bias": torch.tensor([0.0, 0.0, 2.0])}
    outer, rows = Adam(learning_rate=0.05), torch.arange(len(goal))
    moments = outer.init(params)

    def pulls(arms, logits):
        rewards = torch.where(arms == 2, 0.6, (arms == goal).double()).reshape(-1, 1, 1)
        actions, blank = arms.reshape(-1, 1, 1), torch.zeros_like(rewards)
        log_probs = logits.log_softmax(-1)[rows, arms].reshape(-1, 1, 1)
        return synthetic.by_hand(
            blank.unsqueeze(-1), actions, log_probs, rewards, torch.ones_like(rewards), rewards - 0.5
        )

    earned = []
    for _ in range(steps):
        state = one.begin(params, torch.zeros(len(goal), 0))
        support = pulls(before, state.params["head.bias"])
        moved = one.adapt(state, support)
        query = pulls(after, moved.params["head.bias"])
        chances = (support.log_probs + query.log_probs).exp().flatten() / 2
        earned.append((chances * query.rewards.flatten()).sum().item())
        weighed = one._replace(meta_loss=lambda *given, chances=chances: (chances * one.meta_loss(*given)[0], {}))
        given = Experience(descriptors=torch.zeros(len(goal), 0), supports=(support,), query=query)
        update = outer.update(weighed, params, moments, given)
        params, moments = update.params, update.state
    return earned[-1]


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_a_cautious_policy_learns_to_explore_by_the_term_alone(surrogate):
    assert after_practice(surrogate, 0.0) == pytest.approx(0.6, abs=0.02)
    assert after_practice(surrogate, 1.0) > 0.95


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("spec", [synthetic.CONTINUOUS, synthetic.DISCRETE], ids=["continuous", "discrete"])
def test_the_meta_gradient_matches_finite_differences(surrogate, spec):
    """Away from the policy that acted, with two steps."""
    network = Network(hidden=(4,), activation="tanh")
    one = MAML(steps=2, surrogate=surrogate, network=network, exploration_term=0.5).build(spec)
    params = synthetic.initial(one)
    given = synthetic.experience(one, params)
    params = {name: value + 0.02 for name, value in params.items()}
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    gradients = torch.autograd.grad(one.meta_loss(leaves, given)[0].mean(), list(leaves.values()))

    def shifted(name, by):
        moved = params | {name: params[name].clone()}
        moved[name].view(-1)[-1] += by
        with torch.no_grad():
            return one.meta_loss(moved, given)[0].mean().item()

    for name, gradient in zip(params, gradients, strict=True):
        expected = (shifted(name, 1e-5) - shifted(name, -1e-5)) / 2e-5
        assert gradient.reshape(-1)[-1].item() == pytest.approx(expected, rel=1e-5, abs=1e-8), name


def test_its_outer_update_is_adam_unless_one_is_chosen_and_trpo_refuses_it():
    with_term, without = MAML(exploration_term=1.0, network=TABLE), MAML(network=TABLE)
    assert default_outer(with_term, SPEC) == Adam()
    assert default_outer(without, SPEC) == TRPO()
    assert default_outer(without, Spec((2,), 1, "regression")) == Adam()
    with pytest.raises(ValueError, match=r"trpo makes the likelihood-ratio surrogate .* train it as it is by adam"):
        TRPO().check(with_term.build(SPEC))


def test_labelled_examples_and_negative_weights_are_refused():
    with pytest.raises(ValueError, match="exploration_term credits the actions of a policy; for labelled examples"):
        MAML(exploration_term=1.0).build(Spec((2,), 1, "regression"))
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"exploration_term={weight}: expected a weight of at least 0"):
            MAML(exploration_term=weight)
