"""Robots of one's own, as ``docs/your_mjcf.md`` defines them: against Gymnasium's, lanes, and what is refused."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from support import pages

import metarl
from metarl import cli, runs
from metarl.control import Sampling
from metarl.testing import check_family
from metarl.types import policy_of
from metarl_envs.mjcf import MJCF
from metarl_envs.mujoco import Dynamics, RobotEnv, RobotVectorEnv, Simulation, box, make_lanes, model_of

PAGE = Path(__file__).parents[2] / "docs" / "your_mjcf.md"
CPU = torch.device("cpu")
SHORT = Sampling(episodes=2, horizon=20)
CART = """<mujoco>
  <option timestep="0.03"/>
  <worldbody>
    <body name="cart"><joint name="slide" type="slide" axis="1 0 0" damping="0.1"/><geom size="0.1"/></body>
  </worldbody>
  <actuator><motor name="engine" joint="slide" ctrlrange="-1 1"/></actuator>
</mujoco>
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with the modules of the page."""
    monkeypatch.chdir(tmp_path)
    for block in pages.blocks(PAGE.read_text(encoding="utf-8")):
        if block.file is not None:
            (tmp_path / block.file).write_text(block.code, encoding="utf-8")
    with pages.own_modules(tmp_path):
        importlib.invalidate_caches()
        yield tmp_path


@pytest.fixture
def reacher(written: Path) -> Any:
    return importlib.import_module("reacher").Reacher


@pytest.fixture
def walker(written: Path) -> Any:
    return importlib.import_module("walker").Walker2d


def started_alike(ours: RobotEnv, reference: Any, qpos: np.ndarray, qvel: np.ndarray) -> None:
    ours.reset(seed=0)
    reference.reset(seed=0)
    for env in (ours, reference):
        env.set_state(qpos, qvel)


def test_the_reacher_is_gymnasiums_step_for_step(reacher: Any) -> None:
    goal = np.array([0.08, -0.11])
    ours, reference = reacher().single({"goal": goal}), gymnasium.make("Reacher-v5").unwrapped
    assert ours.dt == pytest.approx(0.02) and ours.metadata["render_fps"] == 50
    started_alike(ours, reference, np.array([0.4, -0.7, *goal]), np.array([0.3, -0.2, 0.0, 0.0]))
    rng = np.random.default_rng(0)
    for _ in range(100):
        action = rng.uniform(-1, 1, 2)
        seen, reward, *_ = ours.step(action)
        expected, paid, *_ = reference.step(action)
        np.testing.assert_allclose(seen, np.r_[expected[:4], expected[6:8]], rtol=0, atol=1e-12)
        assert reward == pytest.approx(paid, abs=1e-12)


def test_the_walker_is_gymnasiums_step_for_step_until_it_falls(walker: Any) -> None:
    ours, reference = walker().single({}), gymnasium.make("Walker2d-v5").unwrapped
    assert ours.dt == pytest.approx(0.008) and ours.metadata["render_fps"] == 125
    fallen = 0
    for episode in range(4):
        rng = np.random.default_rng(episode)
        reference.reset(seed=episode)
        started_alike(ours, reference, reference.data.qpos.copy(), rng.normal(size=9) * 0.1)
        for _ in range(100):
            action = rng.uniform(-1, 1, 6)
            seen, reward, terminated, _, info = ours.step(action)
            expected, paid, ended, _, told = reference.step(action)
            np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-12)
            assert reward == pytest.approx(paid, abs=1e-12) and terminated == ended
            assert info["x_velocity"] == pytest.approx(told["x_velocity"], abs=1e-12)
            fallen += ended
            if ended:
                break
    assert fallen >= 2


def test_heavier_and_smoother_walkers_are_gymnasiums_with_such_a_model(walker: Any) -> None:
    ours, reference = walker().single({"mass": 1.3, "friction": 0.6}), gymnasium.make("Walker2d-v5").unwrapped
    reference.model.body_mass *= 1.3
    reference.model.body_inertia *= 1.3
    reference.model.geom_friction *= 0.6
    mujoco.mj_setConst(reference.model, reference.data)
    plain = walker().single({})
    start = np.array([0.0, 1.2, 0.1, 0.0, -0.2, 0.0, 0.1, 0.0, 0.0]), np.zeros(9)
    started_alike(ours, reference, *start)
    started_alike(plain, reference, *start)
    action = np.full(6, 0.4)
    for _ in range(20):
        seen, expected, other = (env.step(action)[0] for env in (ours, reference, plain))
        np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-12)
    assert abs(seen - other).max() > 0.01


@pytest.mark.parametrize("backend", ["auto", "threads"])
@pytest.mark.parametrize("name", ["reacher", "walker"])
def test_the_contract_holds(name: str, backend: Any, request: pytest.FixtureRequest) -> None:
    check_family(request.getfixturevalue(name)(sampling=SHORT, simulation=Simulation(backend)))


def test_lanes_have_masses_and_friction_of_their_own(walker: Any) -> None:
    """Each is, bit for bit, the single environment of its task."""
    tasks = {"mass": np.array([0.5, 1.0, 1.5]), "friction": np.array([1.5, 0.5, 1.0])}
    family = walker(reset_noise=0.0)
    lanes, states = RobotVectorEnv(family, 3), []
    lanes.reset(seed=0, options=tasks)
    singles = [family.single({name: values[lane] for name, values in tasks.items()}) for lane in range(3)]
    for single in singles:
        single.reset(seed=0)
    for step in range(10):  # before one falls
        actions = np.random.default_rng(step).uniform(-1, 1, (3, 6))
        seen, rewards, *_ = lanes.step(actions)
        states = [single.step(action) for single, action in zip(singles, actions, strict=True)]
        assert (seen == np.stack([state[0] for state in states])).all()
        assert rewards.tolist() == [state[1] for state in states]
    assert len({state[1] for state in states}) == 3


def test_targets_start_at_the_goals_of_their_lanes(reacher: Any) -> None:
    goals = np.array([[0.1, 0.05], [-0.1, 0.0], [0.0, -0.12]])
    lanes = RobotVectorEnv(reacher(), 3)
    lanes.reset(seed=0, options={"goal": goals})
    assert (lanes.simulator.qpos[:, 2:] == goals).all() and (lanes.simulator.qvel[:, 2:] == 0).all()
    assert len(np.unique(lanes.simulator.qpos[:, 0])) == 3
    only = np.array([False, True, False])
    lanes.reset(options={"goal": goals[::-1].copy() * 0.5, "reset_mask": only})
    assert lanes.simulator.qpos[:, 2:].tolist() == [goals[0].tolist(), (goals[1] * 0.5).tolist(), goals[2].tolist()]


def test_tasks_are_drawn_uniformly_in_their_ranges(reacher: Any, walker: Any) -> None:
    drawn = reacher(goal_range=(-0.1, 0.05)).sample(4000, "train", torch.Generator().manual_seed(0)).parameters["goal"]
    assert drawn.shape == (4000, 2) and drawn.min() >= -0.1 and drawn.max() <= 0.05
    np.testing.assert_allclose(drawn.mean(0), [-0.025, -0.025], atol=0.003)
    np.testing.assert_allclose(drawn.std(0), [0.15 / 12**0.5] * 2, atol=0.002)
    tasks = walker().sample(3, "train", torch.Generator().manual_seed(0))
    assert list(tasks.parameters) == ["mass", "friction"] and tasks.descriptors.shape == (3, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reacher", "walker"])
def test_warp_has_the_same_robots(name: str, request: pytest.FixtureRequest) -> None:
    """In float32: the same rewards from the same states and tasks, before small differences have grown."""
    pytest.importorskip("mujoco_warp", reason="MuJoCo Warp is not installed")
    family = request.getfixturevalue(name)(simulation=Simulation("warp"), reset_noise=0.0)
    tasks = {name: values.numpy() for name, values in family.sample(4, "train", generator()).parameters.items()}
    ours, reference = make_lanes(family, 4, None, CPU), RobotVectorEnv(replace(family, simulation=Simulation()), 4)
    for env in (ours, reference):
        env.reset(seed=0, options=tasks)
    actions = np.random.default_rng(0).uniform(-1, 1, (5, *ours.action_space.shape))
    for action in actions:
        seen, rewards, *_ = ours.step(torch.from_numpy(action).float())
        expected, paid, *_ = reference.step(action)
        np.testing.assert_allclose(seen, expected, atol=2e-3)
        np.testing.assert_allclose(rewards, paid, atol=2e-3)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@dataclass(frozen=True)
class Cart(MJCF):
    """A cart that should run at a velocity; its control step lasts 0.3 s."""

    model_file = "cart.xml"
    substeps = 10
    velocity_range: tuple[float, float] = (-1.0, 1.0)

    @property
    def goal_space(self) -> Any:
        return {"velocity": box(*self.velocity_range)}

    def reward(self, motion: Any, parameters: Any) -> Any:
        return -abs(motion.velocity[..., 0] - parameters["velocity"])


def own(**members: Any) -> Any:
    """Return a robot like Cart with other members."""
    return dataclass(frozen=True)(type("Cart", (Cart,), {"__module__": __name__, **members}))()


@pytest.fixture
def cart(tmp_path: Path) -> Path:
    path = tmp_path / "cart.xml"
    path.write_text(CART, encoding="utf-8")
    return path


@pytest.mark.parametrize(("substeps", "fps"), [(1, 33), (10, 3), (100, 1)])
def test_control_steps_of_any_length(cart: Path, substeps: int, fps: int) -> None:
    """A force of 1 N on a cart with damping, which MuJoCo's Euler integrator takes implicitly."""
    made = own(model_file=cart, substeps=substeps, position=lambda self, physics: physics.qpos)
    family = replace(made, reset_noise=0.0)
    env, lanes = family.single({"velocity": 0.0}), RobotVectorEnv(family, 2)
    assert env.dt == lanes.dt == pytest.approx(0.03 * substeps) and env.metadata["render_fps"] == fps
    env.reset(seed=0)
    lanes.reset(seed=0, options={"velocity": np.array([0.0, 1.0])})
    mass, place, speed = model_of(family).body_mass[1], 0.0, 0.0
    for _ in range(substeps):
        speed = (mass * speed + 0.03 * 1.0) / (mass + 0.03 * 0.1)
        place += 0.03 * speed
    _, reward, *_ = env.step(np.array([1.0]))
    assert env.data.qpos[0] == pytest.approx(place, rel=1e-12)
    assert reward == pytest.approx(-place / (0.03 * substeps), rel=1e-12)
    rewards = lanes.step(np.ones((2, 1)))[1]
    assert rewards.tolist() == [reward, pytest.approx(-1 - reward, rel=1e-12)]


def test_files_are_found_beside_the_class_absolutely_and_in_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "somewhere" / "robots_of_mine"
    (package / "models").mkdir(parents=True)
    (package / "models" / "cart.xml").write_text(CART, encoding="utf-8")
    source = "from dataclasses import dataclass\nfrom metarl_envs.mjcf import MJCF\n@dataclass(frozen=True)\n"
    members = "    model_file = 'models/cart.xml'\n    def reward(self, motion, parameters): return motion.effort\n"
    (package / "__init__.py").write_text(f"{source}class Packed(MJCF):\n{members}", encoding="utf-8")
    elsewhere = "from robots_of_mine import Packed\nclass Inherited(Packed): pass\n"
    (tmp_path / "inheriting.py").write_text(elsewhere, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pages.own_modules(tmp_path):
        monkeypatch.syspath_prepend(package.parent)
        packed = importlib.import_module("robots_of_mine").Packed()
        inherited = importlib.import_module("inheriting").Inherited()
        assert model_of(packed) is model_of(inherited)
        assert model_of(packed) is model_of(own(model_file=package / "models" / "cart.xml"))
        assert model_of(own(model_file="reacher.xml")).nu == 2
        monkeypatch.setenv("HOME", str(package))
        assert model_of(own(model_file="~/models/cart.xml")) is model_of(packed)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"model_file": "lost.xml"}, r"Cart.model_file: there is no lost.xml in .*tests/envs, nor among Gymnasium's m"),
        ({"model_file": "/lost/lost.xml"}, r"^Cart.model_file: there is no file /lost/lost.xml$"),
        ({"substeps": 0}, "substeps must be at least 1, not 0"),
        (
            {"observe": lambda self, physics: physics.qpos[:1]},
            r"Cart.observe returns shape \(1, 1\) for 101 lanes: exp",
        ),
        ({"observe": lambda self, physics: physics.xpos}, r"Cart.observe returns shape \(2, 3\) for one robot: expect"),
        (
            {"observe": lambda self, physics: 3.0},
            r"Cart.observe returns shape \(\) for one robot: expected \[..., size",
        ),
        ({"reward": lambda self, motion, p: motion.velocity}, r"Cart.reward returns shape \(2,\) for one robot: expec"),
        ({"reward": lambda self, motion, p: p["speed"]}, r"Cart.reward fails for one robot \(KeyError: 'speed'\): exp"),
        (
            {"healthy": lambda self, physics: True},
            r"Cart.healthy returns shape \(\) for 101 lanes: expected ",
        ),
        (
            {"start": lambda self, qpos, qvel, p: (qpos, qpos[..., :0])},
            r"Cart.start returns 1 numbers, .* nv = 2",
        ),
        (
            {"position": lambda self, physics: physics.xpos[..., self.body("car"), :2]},
            "no body .car.; it has world, ",
        ),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(cart: Path, members: Any, message: str) -> None:
    for act in (lambda family: family.single({}), lambda family: family.environment(2, CPU)):
        with pytest.raises(ValueError, match=message) as caught:
            act(own(**{"model_file": cart} | members))
        assert "\n" not in str(caught.value)


def test_sizes_that_differ_between_one_robot_and_lanes_are_noticed(cart: Path) -> None:
    with pytest.raises(ValueError, match=r"Cart.observe returns \(1,\) for one robot and \(2,\) for each of 101: "):
        own(model_file=cart, observe=lambda self, seen: np.zeros((*seen.qpos.shape[:-1], seen.qpos.ndim))).single({})


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (
            "<mujoco><worldbody><bod/></worldbody></mujoco>",
            "MuJoCo cannot compile .*cart.xml: .*; Element 'bod', line 1",
        ),
        ("<mujoco", "MuJoCo cannot compile .*cart.xml: XML parse error"),
        (
            CART.replace('<motor name="engine" joint="slide" ctrlrange="-1 1"/>', ""),
            "cart.xml has no actuators",
        ),
        (CART.replace(' ctrlrange="-1 1"', ""), "actuator engine in .*cart.xml has no range: give it a ctrlrange"),
    ],
)
def test_files_that_cannot_be_used_are_told_in_one_line(tmp_path: Path, xml: str, message: str) -> None:
    path = tmp_path / "cart.xml"
    path.write_text(xml, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        _ = own(model_file=path).spec
    assert "\n" not in str(caught.value)


def test_options_are_told_from_attributes() -> None:
    """A default without its type would leave the inherited one as it was."""
    with pytest.raises(TypeError, match=r"Cart.reset_noise is an option: write it with its type, .*: float = 0.3"):
        own(reset_noise=0.3)
    with pytest.raises(TypeError, match=r"Cart.velocity_range is an option: .* velocity_range: tuple"):
        own(velocity_range=(0.0, 1.0))


def test_a_robot_without_a_file_is_told() -> None:
    class Bodiless(MJCF):
        def reward(self, motion: Any, parameters: Any) -> Any:
            return motion.effort

    with pytest.raises(ValueError, match="Bodiless has no model_file: name its MJCF file there"):
        _ = Bodiless().spec


def test_tasks_must_differ(cart: Path) -> None:
    with pytest.raises(ValueError, match="the tasks of Cart do not differ: give it a goal_space or dynamics"):
        own(model_file=cart, goal_space={}).sample(2, "train", generator())
    varied = replace(
        own(model_file=cart, goal_space={}, reward=lambda s, m, p: m.effort), dynamics=Dynamics(mass=(1, 2))
    )
    assert list(varied.sample(2, "train", generator()).parameters) == ["mass"]


def test_numpy_in_place_of_torch_is_told(cart: Path) -> None:
    pytest.importorskip("mujoco_warp", reason="MuJoCo Warp is not installed")
    family = replace(
        own(model_file=cart, observe=lambda self, physics: np.concatenate([physics.qpos, physics.qvel], axis=-1)),
        simulation=Simulation("warp"),
    )
    with pytest.raises(ValueError, match=r"Cart.observe returns ndarray .* use namespace.* in place of numpy"):
        family.environment(2, CPU)


def test_a_run_notices_another_file(cart: Path, tmp_path: Path) -> None:
    include = '<include file="more.xml"/>'
    meshes = '<compiler meshdir="shapes"/><asset><mesh name="a" file="lump.obj" scale="1 1 1"/></asset>'
    cart.write_text(CART.replace("<worldbody>", f"{meshes}{include}<!-- a -- b --><worldbody>", 1), encoding="utf-8")
    (tmp_path / "shapes").mkdir()
    lump, more = tmp_path / "shapes" / "lump.obj", tmp_path / "more.xml"
    lump.write_text("v 0 0 0\n")
    more.write_text("<mujoco/>")
    family = own(model_file=cart)
    told = [family.fingerprint()]
    for file in (cart, lump, more):
        file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        told.append(family.fingerprint())
    assert len(set(told)) == 4 and family.fingerprint() == told[-1]


@pytest.mark.slow
def test_a_run_of_ones_own_robot(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained, asked for tasks outside of its ranges, and not resumed with another file."""
    own_file = written / "arm.xml"
    own_file.write_text(
        (Path(gymnasium.__file__).parent / "envs/mujoco/assets/reacher.xml").read_text(), encoding="utf-8"
    )
    module = written / "reacher.py"
    module.write_text(module.read_text(encoding="utf-8").replace('"reacher.xml"', '"arm.xml"'), encoding="utf-8")
    settings = "--iterations 1 --meta-batch-size 2 --tasks.sampling.episodes 2 --tasks.sampling.horizon 5"
    assert cli.main(["train", "maml", "reacher:Reacher", *settings.split(), "--out", "run", "--quiet"]) == cli.DONE
    run = metarl.open_run("run")
    tasks = run.task(goal=(0.05, 0.1))
    assert policy_of(run.learner, run.adapt(tasks, 1)[-1].state) is not None
    with pytest.raises(ValueError, match=r"goal.*\(5\.0, 5\.0\)|goal.*5") as caught:
        run.task(goal=(5.0, 5.0))
    assert "\n" not in str(caught.value)
    own_file.write_text(own_file.read_text(encoding="utf-8").replace('gear="200.0"', 'gear="100.0"'), encoding="utf-8")
    with pytest.raises(runs.RunError, match="run was trained on other data than there are now"):
        metarl.open_run("run")


def test_gymnasium_makes_it(written: Path) -> None:
    made: Any = gymnasium.make(
        gymnasium.envs.registration.EnvSpec(
            "Own-v0", "metarl_envs.mujoco:make_env", kwargs={"family": "reacher:Reacher"}, max_episode_steps=5
        ),
        goal=(0.1, 0.0),
        reset_noise=0.0,
        threads=1,
    )
    made.reset(seed=0)
    assert made.unwrapped.data.qpos.tolist() == [0.0, 0.0, 0.1, 0.0]
    made.close()
