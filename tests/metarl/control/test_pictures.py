"""Control from pictures, alone and among other observations: trained, adapted, exported, and refused in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation
from support.cameras import CONV, Slider, sliders

import metarl
from metarl import Settings, evaluate, sb3, train
from metarl.algorithms import MAML, RL2, Reptile
from metarl.control import RolloutError
from metarl.environments import flat
from metarl.outer import TRPO, ProMP
from metarl.testing import check_family

ONE = Settings(iterations=1, meta_batch_size=2)
VIEWS: dict[str, Any] = {
    "uint8, channels last": {"camera": ((8, 12, 3), np.uint8, 255)},
    "uint8, channels first": {"camera": ((3, 8, 12), np.uint8, 255)},
    "floats": {"camera": ((8, 12, 1), np.float32, 1)},
    "floats up to 255": {"camera": ((8, 12, 3), np.float32, 255)},
    "two pictures": {"camera": ((8, 12, 3), np.uint8, 255), "depth": ((1, 9, 10), np.float32, 1)},
}


KINDS = [(views, speed) for views in VIEWS.values() for speed in (True, False) if speed or len(views) == 1]


@pytest.mark.parametrize(("views", "speed"), KINDS)
def test_pictures_of_every_kind_are_learned_from(views: Any, speed: bool) -> None:
    family = sliders(views=views, speed=speed)
    run = train(MAML(network=CONV), family, settings=ONE)
    before = MAML(network=CONV).build(family.spec).init(metarl.seeding.stream(0, "initialisation"))
    moved = {name for name, value in run.params.items() if not torch.equal(value, before[name])}
    assert {name.split(".")[-2] for name in moved} >= {"conv_0", "joint_0", "head", "policy"}
    found = evaluate(run.learner, run.params, family, tasks=2, steps=1)
    assert found.scores["return"].isfinite().all()


@pytest.mark.parametrize(
    ("algorithm", "outer"),
    [
        (MAML(network=CONV, steps=2, learn_step_sizes=True), TRPO()),
        (MAML(network=CONV, adapt_only=("head",)), ProMP()),
        (MAML(network=CONV, normalise_observations=True, learn_step_sizes=True, step_sizes="layer_step"), TRPO()),
        (Reptile(network=CONV), None),
    ],
)
def test_algorithms_learn_from_pictures_and_vectors(algorithm: Any, outer: Any) -> None:
    run = train(algorithm, sliders(), *([] if outer is None else [outer]), settings=ONE)
    assert all(value.isfinite().all() for value in run.params.values())
    adapted = run.adapt(run.tasks(2), steps=1)
    assert adapted[1].rollout.rewards.shape == (2, 3, 6)


def test_the_head_alone_adapts() -> None:
    family = sliders()
    learner = MAML(network=CONV, adapt_only=("head",)).build(family.spec)
    params = learner.init(torch.Generator().manual_seed(0))
    before, after = (
        one.state for one in metarl.evaluation.adapt(learner, params, family.sample(2, "test", torch.Generator()), 1)
    )
    networks = [
        next(part for part in state if isinstance(part, dict)) if isinstance(state, tuple) else state
        for state in (before, after)
    ]
    changed = {name for name in networks[0] if not torch.equal(networks[0][name], networks[1][name])}
    assert changed == {"head.weight", "head.bias"}


def test_memory_reads_the_vector() -> None:
    run = train(RL2(hidden=4), sliders(), settings=ONE)
    assert run.rows[-1]["return/step_1"] < 0


def test_normalising_leaves_pictures_as_they_are() -> None:
    family = sliders()
    run = train(
        MAML(network=CONV, normalise_observations=True), family, settings=Settings(iterations=2, meta_batch_size=2)
    )
    state = run.state()
    camera = next(part for part in family.spec.observations if part.channels)
    place = slice(camera.offset, camera.offset + camera.size)
    assert not state.mean[0, place].any() and (state.scale[0, place] == 1).all()
    others = torch.ones(family.spec.input_shape, dtype=torch.bool)
    others[place] = False
    assert state.mean[0, others].any()
    buffers = run.buffers
    torch.testing.assert_close(
        state.mean[0, others].double(), buffers["observations.mean"][others], rtol=1e-5, atol=1e-6
    )


def test_frames_are_stacked_by_the_wrapper() -> None:
    family = sliders(wrap=lambda env: FrameStackObservation(env, 4))
    camera = next(part for part in family.spec.observations if part.channels)
    assert camera.picture == (12, 8, 12)
    network = CONV.build(family.spec)
    assert network.init(torch.Generator())["parts.picture_0.conv_0.weight"].shape == (3, 12, 5, 5)
    train(MAML(network=CONV), family, settings=ONE)
    alone = sliders(wrap=lambda env: FrameStackObservation(env, 4), speed=False)
    assert alone.spec.input_shape == (12, 8, 12)
    train(MAML(network=CONV), alone, settings=ONE)


def test_the_family_keeps_its_contract() -> None:
    check_family(sliders())
    check_family(sliders(speed=False))


def test_a_policy_of_pictures_adapts_to_an_environment_and_is_exported(tmp_path: Path) -> None:
    run = train(MAML(network=CONV, normalise_observations=True), sliders(), settings=ONE)
    env = Slider(goal=0.4, ends=5)
    adapted = run.adapt_to(env, episodes=3, after=2)
    observation, _ = env.reset(seed=1)
    action = adapted.act(observation)
    assert env.action_space.contains(action)
    adapted.save(tmp_path / "policy")
    again = metarl.load_model(tmp_path / "policy")
    np.testing.assert_array_equal(again.act(observation), action)
    vector = torch.from_numpy(flat(run.learner.spec.observations, observation)).float()
    program = torch.export.load(adapted.export(tmp_path / "policy.pt2")).module()
    np.testing.assert_allclose(program(vector.expand(3, -1))[1], action, atol=1e-5)


def test_onnx_has_the_same_actions(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX is optional: pip install 'metarl-toolkit[onnx]'")
    pytest.importorskip("onnxscript", reason="ONNX is optional: pip install 'metarl-toolkit[onnx]'")
    run = train(MAML(network=CONV), sliders(speed=False), settings=ONE)
    adapted = run.adapt_to(Slider(speed=False, ends=5), episodes=2, after=0)
    session = onnxruntime.InferenceSession(str(adapted.export(tmp_path / "policy.onnx")))
    observation, _ = Slider(speed=False).reset(seed=0)
    (actions,) = session.run(None, {"inputs": np.stack([observation] * 3).astype(np.float32)})
    np.testing.assert_allclose(actions[0], adapted.act(observation), atol=1e-4)


@pytest.mark.parametrize("speed", [True, False])
def test_stable_baselines3_refuses_convolutions_in_one_line_and_predicts(speed: bool) -> None:
    run = train(MAML(network=CONV), sliders(speed=speed), settings=ONE)
    with pytest.raises(ValueError, match="is no plain multilayer perceptron"):
        sb3.to_ppo(run)
    observation, _ = Slider(speed=speed).reset(seed=0)
    action, _ = sb3.policy(run, own_spaces=True).predict(observation, deterministic=True)
    assert Slider().action_space.contains(action)


class Dark(Slider):
    """Its space says whole numbers, and it returns shares of 1."""

    def _view(self, *view: Any) -> Any:
        return super()._view(*view) / 200


class Glaring(Slider):
    """Its space says floats up to 1, and it returns up to 255."""

    def _view(self, *view: Any) -> Any:
        return 255 * super()._view(*view)


@pytest.mark.parametrize(
    ("made", "views", "told"),
    [
        (Dark, VIEWS["uint8, channels last"], "holds 1.275 where its space has uint8: return whole numbers up to 255"),
        (Glaring, VIEWS["floats"], "is a picture of 0 to 255 where its space has 0 to 1"),
    ],
)
@pytest.mark.parametrize("speed", [True, False])
def test_pictures_that_are_not_as_their_space_says_are_told(made: Any, views: Any, told: str, speed: bool) -> None:
    env = made(views=views, speed=speed)
    family = metarl.GymnasiumFamily(
        lambda: env, spaces.Dict(goal=spaces.Box(-0.5, 0.5)), apply="attribute", sampling=metarl.Sampling(1, 2)
    )
    with pytest.raises(RolloutError, match=told):
        family.sample(1, "test", torch.Generator()).rollout(
            metarl.control.scripted(family.spec, lambda seen: seen.new_zeros(1, 1, 1)), torch.Generator()
        )


def test_pictures_too_small_for_pooling_are_told() -> None:
    network = metarl.Network("conv4", downsample="pool")
    with pytest.raises(ValueError, match="the part 'camera' of the observations: conv4 halves images until nothing"):
        train(MAML(network=network), sliders(), settings=ONE)
