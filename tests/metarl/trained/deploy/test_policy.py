"""Policies adapted to environments that metarl does not know, and to recorded episodes."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import metarl
from metarl import Episode, Rollout, Sampling
from metarl.advantages import learned
from metarl.algorithms import MAML
from metarl.algorithms.rl2 import RL2
from metarl.control import GymnasiumFamily, RolloutError
from metarl.networks import Network
from metarl.trained.deploy.likely import OffPolicyWarning
from metarl.trained.deploy.native import Native, native, read
from metarl_envs.navigation import PointNavigation

SMALL = Network(hidden=(8,))
TIMED = ("observations", "actions", "log_probs", "rewards", "terminated", "truncated", "mask")


class Line(gymnasium.Env[Any, Any]):
    """Walk along a line towards a target; what it saw and did is recorded."""

    def __init__(self, target: float = 3.0, length: int = 6, low: float = 0.0, high: float = 4.0) -> None:
        self.observation_space = spaces.Box(-100, 100, (2,), dtype=np.float64)
        self.action_space = spaces.Box(low, high, (1,), dtype=np.float32)
        self.target, self.length, self.log = target, length, list[list[Any]]()
        self.closed = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = float(self.np_random.uniform(-1, 1)), 0
        self.log.append([[self._seen()], [], [], False])
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action.shape == (1,) and action.dtype == np.float32 and self.action_space.contains(action)
        self.place += float(action[0]) - 2
        self.steps += 1
        reward, ended = -abs(self.place - self.target), abs(self.place) > 8
        observations, actions, rewards, _ = self.log[-1]
        observations.append(self._seen())
        actions.append(action.copy())
        rewards.append(reward)
        self.log[-1][3] = ended
        return self._seen(), reward, ended, self.steps == self.length, {}

    def close(self) -> None:
        self.closed = True

    def _seen(self) -> Any:
        return np.array([self.place, 1.0])


FAMILY = GymnasiumFamily(Line, spaces.Dict(target=spaces.Box(-4.0, 4.0)), sampling=Sampling(3, 20))


def made(algorithm: Any, family: Any) -> metarl.Trained:
    learner = algorithm.build(family.spec)
    params = learner.init(torch.Generator().manual_seed(0))
    return metarl.Trained(algorithm, family, learner, params, torch.device("cpu"), 0)


@pytest.fixture(scope="module")
def trained() -> metarl.Trained:
    return made(MAML(network=SMALL, step_size=0.1), FAMILY)


def test_the_recorded_episodes_are_those_that_were_learned_from(trained: metarl.Trained) -> None:
    """Played and recorded by the environment itself, the same episodes lead to the same policy."""
    env = Line()
    played = trained.adapt_to(env, episodes=4, after=0)
    assert len(env.log) == 4 and not env.closed
    recorded = trained.adapt_to([Episode(*episode) for episode in env.log])
    (ours,), (theirs,) = played.learnt_from, recorded.learnt_from
    np.testing.assert_allclose(played.returns[0], [sum(rewards) for _, _, rewards, _ in env.log], rtol=1e-5)
    ours = cut(ours, theirs.mask.shape[2])
    running = theirs.mask.bool()
    for name in ("observations", "rewards", "terminated", "mask"):
        torch.testing.assert_close(getattr(ours, name)[running], getattr(theirs, name)[running])
    torch.testing.assert_close(ours.last_observations, theirs.last_observations)
    inside = running & (ours.actions[..., 0].abs() < 1)  # the environment's bounds hide the others
    assert inside.sum() > 5
    torch.testing.assert_close(ours.actions[inside], theirs.actions[inside], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.log_probs[inside], theirs.log_probs[inside], atol=1e-4, rtol=0)
    seen = np.array([[0.5, 1.0], [-2.0, 1.0]])
    assert (trained.adapt_to(played.learnt_from[0]).act(seen) == played.act(seen)).all()
    given = [Episode(*episode, log_probs=own) for episode, own in zip(env.log, _own_units(theirs), strict=True)]
    torch.testing.assert_close(trained.adapt_to(given).learnt_from[0].log_probs, theirs.log_probs, atol=1e-5, rtol=0)


def cut(rollout: Rollout, steps: int) -> Rollout:
    """Leave out the time after all episodes."""
    kept = {name: value[:, :, :steps] for name, value in vars(rollout).items() if name in TIMED}
    return replace(rollout, **kept)


def _own_units(rollout: Rollout) -> list[Any]:
    """Return log-densities of the environment's own actions: its range is 4, the policy's 2."""
    lengths = rollout.mask[0].sum(1).int().tolist()
    return [row[:length].numpy() - np.log(2) for row, length in zip(rollout.log_probs[0], lengths, strict=True)]


def test_a_log_in_other_units_is_told(trained: metarl.Trained) -> None:
    env = Line()
    trained.adapt_to(env, episodes=4, after=0)
    percent = [Episode(seen, [25 * action for action in acts], *rest) for seen, acts, *rest in env.log]
    with pytest.warns(OffPolicyWarning, match=r"hardly this policy's own.*has actions from 0 to 4"):
        trained.adapt_to(percent)


def test_the_state_is_that_of_the_learners_own_steps(trained: metarl.Trained) -> None:
    adapted = trained.adapt_to(Line(), episodes=3, steps=2, after=2)
    learner = trained.learner
    state = learner.begin(trained.params, torch.zeros(1, 1))
    with torch.no_grad():
        for rollout in adapted.learnt_from:
            state = learned(learner, state, rollout)
        seen = np.array([[0.5, 1.0], [-2.0, 1.0]])
        outputs, _ = learner.predict(state, torch.tensor(seen, dtype=torch.float32)[None])
    mean = learner.spec.distribution.mode(outputs)[0].clamp(-1, 1)
    np.testing.assert_allclose(adapted.act(seen), 2 + 2 * mean.numpy(), rtol=1e-5)
    assert [len(found) for found in adapted.returns] == [3, 3, 2]
    assert adapted.act(seen[0]).shape == (1,)
    assert adapted.summary().count("return/step_") == 3
    drawn = [adapted.act(seen, deterministic=False, seed=seed) for seed in (1, 1, 2)]
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any()


def test_a_vector_of_any_autoreset_mode_gives_the_same(trained: metarl.Trained) -> None:
    found = []
    for mode in AutoresetMode:
        lanes: list[Callable[[], Line]] = [lambda: Line(length=5), lambda: Line(length=7), lambda: Line(length=9)]
        adapted = trained.adapt_to(SyncVectorEnv(lanes, autoreset_mode=mode), episodes=5, after=0)
        (rollout,) = adapted.learnt_from
        assert rollout.mask.sum(-1).flatten().tolist() == [5, 7, 9] * 2
        found.append(rollout)
    for rollout in found[1:]:
        for name in ("observations", "last_observations", "rewards", "truncated", "actions"):
            torch.testing.assert_close(getattr(rollout, name), getattr(found[0], name))


def test_a_policy_is_saved_and_opened(trained: metarl.Trained, tmp_path: Path) -> None:
    adapted = trained.adapt_to(Line(), episodes=2, steps=2)
    opened = metarl.load_model(adapted.save(tmp_path / "policy"))
    seen = np.array([[0.5, 1.0], [-2.0, 1.0]])
    np.testing.assert_allclose(opened.act(seen), adapted.act(seen), rtol=1e-5)
    assert opened.summary() == adapted.summary()
    assert (pickle.loads(pickle.dumps(adapted)).act(seen) == adapted.act(seen)).all()
    assert opened.card.scores.keys() == {"return/step_0", "return/step_1", "return/step_2"}


def test_what_does_not_fit_gets_a_line(trained: metarl.Trained) -> None:
    wide, choices = Line(), Line()
    wide.observation_space = spaces.Box(-1, 1, (3,))
    choices.action_space = spaces.Discrete(3)
    broken = Line()
    broken.step = lambda action: (_ for _ in ()).throw(OSError("the arm is off"))  # type: ignore[method-assign]
    steps = {"observations": np.zeros((3, 2)), "actions": np.ones((2, 1)), "rewards": [0.0, 1.0]}
    cases: list[tuple[Any, str]] = [
        (wide, r"inputs \(3,\).*this run's have inputs \(2,\)"),
        (choices, "discrete actions of size 3.*continuous actions of size 1"),
        ("Pendulum-v1", "a str is nothing to adapt to"),
        ([], "a list is nothing to adapt to"),
        ([1, 2], "episode 0: it is a int: expected a metarl.Episode"),
        ([steps | {"rewards": []}], "episode 0: rewards have shape"),
        ([steps | {"actions": np.ones((3, 1))}], r"episode 0: actions have shape \(3, 1\): expected \(2, 1\)"),
        ([steps, steps | {"observations": np.zeros((5, 2))}], "episode 1: there are 5 observations for 2 rewards"),
        ([steps | {"rewards": [0.0, np.nan]}], "episode 0: rewards contain numbers that are not finite"),
        ([steps | {"reward": 1}], "episode 0: .*reward"),
    ]
    for own, told in cases:
        with pytest.raises(ValueError, match=told) as caught:
            trained.adapt_to(own)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="NormalizeObservation, whose running statistics"):
        trained.adapt_to(gymnasium.wrappers.NormalizeObservation(Line()))
    with pytest.raises(RolloutError, match="the arm is off"):
        trained.adapt_to(broken)
    with pytest.raises(ValueError, match="learns from rewards while it acts"):
        made(RL2(), FAMILY).adapt_to(Line())


def test_families_in_their_own_units_are_not_scaled() -> None:
    """PointNavigation's policies act in metres: an environment with other bounds clips, and nothing else."""
    trained = made(MAML(network=SMALL), PointNavigation())
    env = Line(low=-0.1, high=0.1)
    env.observation_space = spaces.Box(-9, 9, (2,))
    env.action_space = spaces.Box(-0.1, 0.1, (2,))
    own = native(env.observation_space, env.action_space, trained.learner.spec, None)
    torch.testing.assert_close(own.act(torch.tensor([[0.05, -3.0]])), torch.tensor([[0.05, -0.1]]))


@pytest.mark.parametrize(
    ("sees", "acts", "observation", "action", "chosen"),
    [
        (spaces.Discrete(4, start=2), spaces.Discrete(3, start=-1), 3, 1, 2),
        (spaces.Box(0, 255, (6, 5, 3), np.uint8), spaces.MultiDiscrete([2, 3]), "random", [1, 2], [1, 2]),
        (spaces.Box(-1, 1, (2,)), spaces.MultiBinary(2), "random", [0, 1], [0, 1]),
        (spaces.Box(-1, 1, (2,)), spaces.Box(np.float32([[0], [-4]]), np.float32([[1], [0]])), "random",
         [[0.75], [-1.0]], [0.5, 0.5]),
        (spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Discrete(3)), spaces.Discrete(2), "random", 1, 1),
    ],
)  # fmt: skip
def test_own_spaces_are_read_as_lanes_read_them(
    sees: Any, acts: Any, observation: Any, action: Any, chosen: Any
) -> None:
    class Own(gymnasium.Env[Any, Any]):
        observation_space, action_space = sees, acts

        def __init__(self, level: float = 0.0) -> None:
            self.level = level

    spec = GymnasiumFamily(Own, spaces.Dict(level=spaces.Box(0.0, 1.0)), apply="attribute").spec
    own = native(sees, acts, spec, None if isinstance(acts, spaces.Discrete) else 1.0)
    sees.seed(0)
    observation = sees.sample() if observation == "random" else observation
    from metarl.environments import Eye, layout

    expected = Eye(np.float32, "").read(layout(sees), observation)
    np.testing.assert_allclose(read(own, spec, observation).numpy(), expected.astype(np.float32), rtol=1e-6)
    policys = torch.tensor(chosen)
    assert own.act(policys).tolist() == action
    assert own.chosen(torch.tensor(action)).tolist() == chosen
    again = Native(**own._asdict())
    assert again == own


def test_normalised_observations_and_buffers_are_saved_and_exported(tmp_path: Path) -> None:
    algorithm = MAML(network=SMALL, normalise_observations=True)
    trained = metarl.train(algorithm, FAMILY, settings=metarl.Settings(iterations=1, meta_batch_size=2, device="cpu"))
    adapted = trained.adapt_to(Line(), episodes=2)
    opened = metarl.load_model(adapted.save(tmp_path / "policy"))
    assert isinstance(opened, metarl.AdaptedPolicy)
    seen = np.array([[0.5, 1.0], [-2.0, 1.0]])
    np.testing.assert_allclose(opened.act(seen), adapted.act(seen), rtol=1e-5)
    program = torch.export.load(opened.export(tmp_path / "policy.pt2")).module()
    np.testing.assert_allclose(program(torch.tensor(seen, dtype=torch.float32)).numpy(), adapted.act(seen), rtol=1e-4)
