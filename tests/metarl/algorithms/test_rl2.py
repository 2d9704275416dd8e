"""RL^2: it learns from what it acted with, its memory lives through a trial and no longer; meta-gradients, learning."""

import itertools
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from support.synthetic import by_hand, initial
from torch.nn import functional

from metarl.advantages import Advantages
from metarl.algorithms.rl2 import RL2
from metarl.control.gymnasium_family import GymnasiumFamily
from metarl.control.sampling import Sampling
from metarl.evaluation.scores import evaluate
from metarl.outer import adapted
from metarl.outer.gradient import Adam
from metarl.outer.promp import ProMP
from metarl.outer.trpo import TRPO
from metarl.seeding import stream
from metarl.testing.batches import tensors
from metarl.training.iteration import gather
from metarl.training.settings import Settings
from metarl.training.start import train
from metarl.types import Examples, Spec, policy_of, select
from metarl_envs.bandit import Bandit
from metarl_envs.navigation import PointNavigation
from metarl_envs.tabular import TabularMDP
from metarl_plugins.sinusoid import Sinusoid

pytestmark = pytest.mark.usefixtures("float64")

SHORT = Sampling(episodes=2, horizon=4)


class Countdown(gymnasium.Env):
    """Observes how far it has come, pays for going on, ends at the goal, and is cut after the limit."""

    def __init__(self, action_space, goal=2.5, limit=99):
        self.observation_space, self.action_space = spaces.Box(-99, 99, (2,)), action_space
        self.goal, self.limit = goal, limit

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.elapsed = 0.0, 0
        return self._seen(), {}

    def step(self, action):
        self.place += float(np.abs(action).sum())
        self.elapsed += 1
        return self._seen(), self.place, self.place >= self.goal, self.elapsed >= self.limit, {}

    def _seen(self):
        return np.array([self.place, self.elapsed], dtype=np.float32)


JUDGED = Advantages(discount=0.9, gae_lambda=0.5)
FIELDS = ("observations", "actions", "log_probs", "rewards", "mask")


def countdown(action_space, limit=99):
    goals = spaces.Dict(goal=spaces.Box(1.5, 3.5))
    return GymnasiumFamily(lambda goal: Countdown(action_space, goal, limit), goals, sampling=Sampling(4, 6))


FAMILIES = {
    "bandit": Bandit(sampling=SHORT),
    "tabular": TabularMDP(sampling=SHORT),
    "navigation": PointNavigation(sampling=SHORT),
    "discrete, terminated": countdown(spaces.Discrete(3)),
    "continuous, terminated": countdown(spaces.Box(-1, 1, (2,))),
    "discrete, truncated": countdown(spaces.Discrete(3), limit=3),
}
every_family = pytest.mark.parametrize("name", FAMILIES)
ENDING = [name for name in FAMILIES if "ated" in name]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sampled(name, tasks=3):
    return FAMILIES[name].sample(tasks, "train", generator(3))


def gathered(learner, params, name, tasks=3):
    draws = (stream(0, "draw", index) for index in itertools.count())
    return gather(learner, params, sampled(name, tasks), draws)[0]


def trial(learner, params, name, episodes=3):
    """States before each episode of a trial, and the outputs with which it was acted, and its rollouts."""
    tasks, recorded = sampled(name), []

    def predict(state, observations):
        outputs, state = learner.predict(state, observations)
        recorded.append(outputs)
        return outputs, state

    acting, state, told = learner._replace(predict=predict), learner.begin(params, torch.zeros(3, 0)), []
    for episode in range(episodes):
        rollout = tasks.rollout(policy_of(acting, state), generator(10 + episode))
        told.append((state, torch.stack(recorded, dim=2), rollout))
        recorded.clear()
        state = learner.adapt(state, rollout)
    return told


@every_family
def test_replay_gives_the_outputs_with_which_it_acted(name):
    learner = RL2(hidden=5).build(FAMILIES[name].spec)
    params = initial(learner)
    for state, acted, rollout in trial(learner, params, name):
        replayed, after = learner.memory.unroll(state, rollout)
        valid = rollout.mask > 0
        torch.testing.assert_close(replayed[valid], acted[valid], rtol=1e-12, atol=1e-12)
        log_probs = learner.spec.distribution.log_prob(replayed, rollout.actions)
        torch.testing.assert_close(log_probs[valid], rollout.log_probs[valid], rtol=1e-12, atol=1e-12)
        for found, expected in zip(after[1:], learner.adapt(state, rollout)[1:], strict=True):
            assert torch.equal(found, expected)


def test_episodes_end_early_in_these_tests():
    for name in ENDING:
        learner = RL2(hidden=5).build(FAMILIES[name].spec)
        lengths = {
            int(n) for _, _, rollout in trial(learner, initial(learner), name) for n in rollout.mask.sum(2).flatten()
        }
        assert len(lengths) > 1 or lengths == {3}
        assert min(lengths) < 6


@every_family
def test_the_outcome_of_the_last_step_comes_with_the_next_episode(name):
    learner = RL2(hidden=5).build(FAMILIES[name].spec)
    _, (state, _, _), _ = told = trial(learner, initial(learner), name)
    rollout = told[0][2]
    last_step = rollout.mask.sum(2).long() - 1
    tasks, episodes = last_step.shape
    for task, episode in itertools.product(range(tasks), range(episodes)):
        step = last_step[task, episode]
        action = rollout.actions[task, episode, step]
        if learner.spec.kind == "discrete":
            action = functional.one_hot(action, learner.spec.output_size)
        expected = [*action.tolist(), float(rollout.rewards[task, episode, step]), 1.0]
        assert state.last[task, episode].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", ENDING)
def test_nothing_after_the_end_of_an_episode_is_remembered(name):
    """The memory after an episode of n steps is that of the same episode in a rollout of n steps."""
    learner = RL2(hidden=5).build(FAMILIES[name].spec)
    state, _, rollout = trial(learner, initial(learner), name)[1]
    after = learner.adapt(state, rollout)
    for task, episode in itertools.product(range(3), range(4)):
        steps = int(rollout.mask[task, episode].sum())
        one = (slice(task, task + 1), slice(episode, episode + 1), slice(steps))
        cut = by_hand(*(getattr(rollout, field)[one] for field in FIELDS), rollout.rewards[one])
        own = state._replace(**{key: getattr(state, key)[[task]][:, [episode]] for key in ("units", "last")})
        alone = learner.adapt(own, cut)
        torch.testing.assert_close(alone.units[0, 0], after.units[task, episode])
        torch.testing.assert_close(alone.last[0, 0], after.last[task, episode])


def test_the_memory_begins_empty_and_lives_through_the_episodes_of_a_trial():
    learner = RL2(hidden=5).build(FAMILIES["tabular"].spec)
    params = initial(learner)
    (first, _, rollout), (second, _, _), (third, _, _) = trial(learner, params, "tabular")
    assert not first.units.any()
    assert not first.last.any()
    assert second.units.shape == third.units.shape == (3, 2, 5)
    better = replace(rollout, rewards=rollout.rewards.clone())
    better.rewards[1, 0, 1] += 1
    changed = learner.adapt(first, better)
    same = torch.tensor([[True, True], [False, True], [True, True]])
    assert ((changed.units == second.units).all(2) == same).all()
    observation = torch.eye(learner.spec.input_shape[0])[0].expand(3, 2, -1)
    outputs, _ = learner.predict(changed, observation)
    before, _ = learner.predict(second, observation)
    assert ((outputs == before).all(2) == same).all()


def test_every_trial_begins_anew():
    """Gathering twice with the same draws gives the same: nothing of the first trial is left in the second."""
    learner = RL2(hidden=5, episodes_per_trial=3).build(FAMILIES["bandit"].spec)
    params = initial(learner)
    first, again = (gathered(learner, params, "bandit") for _ in range(2))
    assert len(first.supports) == 2
    for one, other in zip((*first.supports, first.query), (*again.supports, again.query), strict=True):
        assert one.success is other.success is None
        assert all(torch.equal(values, others) for values, others in zip(tensors(one), tensors(other), strict=True))


def test_by_hand_a_step_sees_the_observation_and_the_last_outcome():
    """One unit whose gates are half open and whose candidate is tanh of the inputs' sum: h / 2 + tanh(sum) / 2."""
    learner = RL2(hidden=1).build(Spec((1,), 2, "discrete"))
    params = {name: torch.zeros_like(value) for name, value in learner.init(generator()).items()}
    params["gru.input"][2] = torch.tensor([1.0, 10.0, 20.0, 100.0, 1000.0])  # observation, action, reward, end
    params["gru.input"][2] /= 1000
    params["head.weight"][0] = 1
    state = learner.begin(params, torch.zeros(1, 0))
    outputs, state = learner.predict(state, torch.tensor([[[7.0]]]))
    first = np.tanh(0.007) / 2
    assert outputs.flatten().tolist() == pytest.approx([first, 0])
    state = learner.memory.observe(state, torch.tensor([[1]]), torch.tensor([[0.5]]), torch.tensor([[False]]))
    outputs, state = learner.predict(state, torch.tensor([[[3.0]]]))
    second = first / 2 + np.tanh(0.003 + 0.020 + 0.050) / 2
    assert outputs[0, 0, 0].item() == pytest.approx(second)
    state = learner.memory.observe(state, torch.tensor([[0]]), torch.tensor([[2.0]]), torch.tensor([[True]]))
    outputs, _ = learner.predict(state, torch.tensor([[[0.0]]]))
    assert outputs[0, 0, 0].item() == pytest.approx(second / 2 + np.tanh(0.010 + 0.200 + 1.0) / 2)


def test_several_steps_at_once_are_refused():
    learner = RL2(hidden=5).build(FAMILIES["navigation"].spec)
    state = learner.begin(initial(learner), torch.zeros(3, 0))
    message = r"acts one step after another: expected observations of shape \[task, episode, 2\], not \[3, 2, 4, 2\]"
    with pytest.raises(ValueError, match=message):
        learner.predict(state, torch.zeros(3, 2, 4, 2))


@pytest.mark.parametrize("name", ["bandit", "navigation", "continuous, terminated", "discrete, terminated"])
@pytest.mark.parametrize("clip", [0.05, 5.0])
def test_meta_gradient_matches_finite_differences(name, clip):
    learner = RL2(hidden=3, episodes_per_trial=2, clip=clip).build(FAMILIES[name].spec)
    params = initial(learner)
    experience = gathered(learner, params, name, tasks=2)
    # Away from the policy that acted, where every ratio is 1; some are clipped then.
    values = tuple((value + 0.05).requires_grad_() for value in params.values())

    def meta_loss(*values):
        return learner.meta_loss(dict(zip(params, values, strict=True)), experience)[0].mean()

    assert torch.autograd.gradcheck(meta_loss, values)


@pytest.mark.parametrize("name", ["bandit", "continuous, terminated"])
def test_curvature_matches_finite_differences(name):
    """TRPO's product with the Hessian of the mean KL, through the whole trial."""
    learner = RL2(hidden=3).build(FAMILIES[name].spec)
    params = initial(learner)
    experience = gathered(learner, params, name, tasks=2)
    old = adapted.adapted_outputs(learner, params, experience)
    mask_of = adapted.judged(learner, experience)

    def kl(candidate, index):
        return adapted.mean_kl(learner, old, adapted.adapted_outputs(learner, candidate, experience), mask_of).sum()

    vector = torch.randn(sum(value.numel() for value in params.values()), generator=generator(4))

    def gradient(width):
        parts = vector.split([value.numel() for value in params.values()])
        moved = {
            name: value + width * part.reshape(value.shape)
            for (name, value), part in zip(params.items(), parts, strict=True)
        }
        return adapted.mean_gradient(kl, moved, [experience])

    expected = (gradient(1e-5) - gradient(-1e-5)) / 2e-5
    found = adapted.kl_hessian_product(learner, [adapted.linearise(learner, params, experience)], vector)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


@every_family
def test_batched_equals_a_loop_over_tasks_in_any_order(name):
    learner = RL2(hidden=5).build(FAMILIES[name].spec)
    params = initial(learner)
    experience = gathered(learner, params, name)
    moved = {key: value + 0.05 for key, value in params.items()}
    loss = learner.meta_loss(moved, experience)[0].mean()
    apart = [learner.meta_loss(moved, select(experience, slice(task, task + 1)))[0].mean() for task in range(3)]
    torch.testing.assert_close(loss, torch.stack(apart).mean())
    assert len({round(float(one), 9) for one in apart}) == 3
    outputs = adapted.adapted_outputs(learner, moved, experience)
    order = torch.tensor([2, 0, 1])
    permuted = adapted.adapted_outputs(learner, moved, select(experience, order))
    torch.testing.assert_close(permuted, outputs[order])


def test_changing_one_episode_changes_no_other_lane():
    learner = RL2(hidden=5).build(FAMILIES["tabular"].spec)
    params = initial(learner)
    experience = gathered(learner, params, "tabular")
    before = adapted.adapted_outputs(learner, params, experience)
    experience.supports[0].rewards[1, 1] += 1
    after = adapted.adapted_outputs(learner, params, experience)
    same = (after == before).flatten(2).all(2)
    assert same.tolist() == [[True, True], [True, False], [True, True]]


def test_advantages_are_those_of_the_trial_cut_into_its_episodes():
    learner = RL2(hidden=5, episodes_per_trial=3, advantages=JUDGED).build(FAMILIES[ENDING[0]].spec)
    experience = gathered(learner, initial(learner), ENDING[0])
    rollouts = (*experience.supports, experience.query)
    found = torch.cat([rollout.advantages for rollout in rollouts], dim=2)
    expected = JUDGED.of_trials(None, rollouts)
    assert torch.equal(found, torch.cat([rollout.advantages for rollout in expected], dim=2))
    assert [rollout.advantages.shape for rollout in rollouts] == [(3, 4, 6)] * 3
    valid = torch.cat([rollout.mask for rollout in rollouts], dim=2) > 0
    assert not found[~valid].any()
    for task in range(3):
        assert found[task][valid[task]].mean().item() == pytest.approx(0, abs=1e-9)
        assert found[task][valid[task]].std(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_a_trial_of_one_episode():
    learner = RL2(hidden=5, episodes_per_trial=1).build(FAMILIES["bandit"].spec)
    assert learner.adaptations == 0
    experience = gathered(learner, initial(learner), "bandit")
    assert learner.meta_loss(initial(learner), experience)[0].mean().isfinite()


@pytest.mark.parametrize("options", [{"discount": 0.5}, {"gae_lambda": 0.3}, {"baseline": "none"}])
def test_options_of_the_advantages_act(options):
    """0.99 and 0.0 gave the same parameters once."""
    settings = Settings(iterations=1, meta_batch_size=2, device="cpu")
    algorithms = [RL2(hidden=3, advantages=Advantages(**chosen)) for chosen in ({"discount": 1.0}, options)]
    ends = [train(algorithm, FAMILIES["bandit"], settings=settings).params for algorithm in algorithms]
    assert not torch.equal(ends[0]["head.weight"], ends[1]["head.weight"])


def test_an_episode_within_a_trial_gets_credit_for_the_next_however_it_ended():
    learner = RL2(hidden=3).build(FAMILIES["bandit"].spec)
    experience = gathered(learner, initial(learner), "bandit")
    for ended in ("terminated", "truncated", None):
        rollouts = [marked(rollout, ended) for rollout in (*experience.supports, experience.query)]
        richer = [*rollouts[:-1], replace(rollouts[-1], rewards=rollouts[-1].rewards + 5 * torch.eye(5)[0, :1])]
        ours, theirs = (JUDGED.of_trials(None, trial)[0].advantages for trial in (rollouts, richer))
        assert not torch.allclose(ours, theirs)


def marked(rollout, ended):
    """The rollout, whose episodes end as said."""
    last = torch.zeros_like(rollout.terminated)
    last[:, :, -1] = True
    marks = {name: last if name == ended else torch.zeros_like(last) for name in ("terminated", "truncated")}
    return replace(rollout, **marks)


def test_promp_is_refused():
    with pytest.raises(ValueError, match="a policy with memory takes none: use trpo, or adam"):
        train(RL2(hidden=5), FAMILIES["bandit"], ProMP(), Settings(iterations=1, meta_batch_size=2, device="cpu"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes_per_trial": 0}, "episodes_per_trial=0: expected at least 1"),
        ({"hidden": 0}, "hidden=0: expected at least 1"),
        ({"clip": 0.0}, "clip=0.0 must be positive"),
        ({"std": 0.0}, "std=0.0 must be positive"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RL2(**options)


def test_examples_are_refused_where_it_acts():
    learner = RL2(hidden=5).build(FAMILIES["navigation"].spec)
    state = learner.begin(initial(learner), torch.zeros(3, 0))
    with pytest.raises(ValueError, match="needs rollouts"):
        learner.adapt(state, Examples(inputs=torch.zeros(3, 1, 2), targets=torch.zeros(3, 1, 2)))


def test_initial_standard_deviation():
    learner = RL2(hidden=5, std=0.5).build(FAMILIES["navigation"].spec)
    state = learner.begin(learner.init(generator()), torch.zeros(3, 0))
    outputs, _ = learner.predict(state, torch.zeros(3, 2, 2))
    torch.testing.assert_close(outputs[..., 2:].exp(), torch.full((3, 2, 2), 0.5))


@pytest.mark.parametrize("outer", [TRPO(), Adam(learning_rate=0.01, epochs=5)], ids=["trpo", "adam"])
def test_it_learns_to_find_the_better_arm(outer):
    """Four pulls in each of five episodes, of which arms at random would pay 2, and the best one 3."""
    torch.set_default_dtype(torch.float32)
    family = Bandit(arms=3, sampling=Sampling(episodes=10, horizon=4))
    algorithm = RL2(episodes_per_trial=5, hidden=32)
    result = train(algorithm, family, outer, Settings(iterations=25, meta_batch_size=20, device="cpu"))
    returns = evaluate(result.learner, result.params, family, tasks=200, steps=4).scores["return"].mean(1)
    assert returns[4] > 2.35  # TRPO earns 2.66 to 2.74 with three seeds, Adam 2.46 to 2.65
    assert returns[4] > returns[0] + 0.25


def test_it_learns_sine_waves_from_points():
    """Predicting 0 costs the mean of amplitude^2 / 2, which is 4.25."""
    torch.set_default_dtype(torch.float32)
    settings = Settings(iterations=400, meta_batch_size=25, device="cpu", log_every=100)
    result = train(RL2(hidden=64), Sinusoid(), Adam(learning_rate=0.003), settings)
    loss = evaluate(result.learner, result.params, Sinusoid(), tasks=200, steps=1).scores["loss"].mean(1)
    assert loss[0] > 3
    assert loss[1] < 2


def test_a_small_output_layer_begins_with_a_factor_of_its_weights() -> None:
    spec = Spec((3,), 2, "continuous")
    plain, small = (RL2(hidden=4, output_scale=scale).build(spec) for scale in (1.0, 0.01))
    whole, scaled = (learner.init(torch.Generator().manual_seed(4)) for learner in (plain, small))
    for name, value in whole.items():
        assert torch.equal(scaled[name], 0.01 * value if name == "head.weight" else value)
    with pytest.raises(ValueError, match="output_scale are for control"):
        RL2(output_scale=0.1).build(Spec((3,), 2, "regression"))
    with pytest.raises(ValueError, match=r"output_scale=0\.0 must be positive"):
        RL2(output_scale=0.0)
