"""A third party's package: its contract in this process, and, slowly, as wheels installed side by side."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from gymnasium.vector import AutoresetMode

from metarl import testing
from metarl.advantages import judged
from metarl.types import Experience, Rollout, Spec, policy_of

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "tests" / "example_plugin"


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLE)
    return importlib.import_module("metarl_example_plugin.reach")


@pytest.fixture
def unadapted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLE)
    return importlib.import_module("metarl_example_plugin.unadapted")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_points_move_and_are_paid_minus_their_distance(reach: ModuleType) -> None:
    env = reach.ReachEnv(2)
    assert env.metadata["autoreset_mode"] == AutoresetMode.DISABLED
    observation, _ = env.reset(seed=0, options={"goal": torch.tensor([0.5, -0.25])})
    assert observation.tolist() == [[0.0], [0.0]]
    observation, reward, terminated, truncated, _ = env.step(torch.tensor([[1.0], [-0.0625]]))
    torch.testing.assert_close(observation, torch.tensor([[0.1], [-0.0625]]))
    torch.testing.assert_close(reward, torch.tensor([-0.4, -0.1875]))
    assert not (terminated | truncated).any()


def test_masked_lanes_restart_and_the_goal_stays(reach: ModuleType) -> None:
    env = reach.ReachEnv(2)
    env.reset(options={"goal": torch.tensor([0.5, -0.25])})
    env.step(torch.full((2, 1), 0.0625))
    observation, _ = env.reset(options={"reset_mask": [True, False]})
    assert observation.tolist() == [[0.0], [0.0625]]
    assert env.step(torch.zeros(2, 1))[1].tolist() == [-0.5, -0.3125]


def test_unknown_options_are_refused(reach: ModuleType) -> None:
    with pytest.raises(
        ValueError, match=r"unknown reset options \['gaol'\]: expected some of \['goal', 'reset_mask'\]"
    ):
        reach.ReachEnv(2).reset(options={"gaol": torch.zeros(2)})


def test_goals_lie_in_range_and_come_from_the_generator(reach: ModuleType) -> None:
    tasks = reach.Reach(distance=3.0).sample(1000, "train", generator())
    assert tasks.parameters["goal"].shape == (1000,)
    assert tasks.descriptors.shape == (1000, 1)
    assert -3 <= tasks.descriptors.min() < -2.9
    assert 2.9 < tasks.descriptors.max() <= 3
    assert torch.equal(tasks.descriptors, reach.Reach(distance=3.0).sample(1000, "train", generator()).descriptors)
    with pytest.raises(ValueError, match="at least one task is needed, not 0"):
        reach.Reach().sample(0, "train", generator())


def test_the_learner_acts_and_learns(reach: ModuleType, unadapted: ModuleType) -> None:
    family = reach.Reach()
    learner = unadapted.Unadapted().build(family.spec)
    params = learner.init(generator())
    tasks = family.sample(3, "train", generator())
    state = learner.begin(params, tasks.descriptors)
    (rollout,) = judged(learner, state, [tasks.rollout(policy_of(learner, state), generator())])
    assert isinstance(rollout, Rollout)
    assert rollout.observations.shape == (3, 10, 20, 1)
    leaves = {name: value.requires_grad_() for name, value in params.items()}
    loss, _ = learner.meta_loss(leaves, Experience(descriptors=tasks.descriptors, supports=(), query=rollout))
    gradients = torch.autograd.grad(loss.mean(), list(leaves.values()))
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


def test_both_keep_their_contracts(reach: ModuleType, unadapted: ModuleType) -> None:
    testing.check_family(reach.Reach())
    testing.check_algorithm(unadapted.Unadapted(), reach.Reach())


def test_predictions_by_hand(unadapted: ModuleType) -> None:
    learner = unadapted.Unadapted().build(Spec((1,), 1, "continuous"))
    params = {"weight": torch.tensor([[2.0, 0.0]]), "bias": torch.tensor([0.5, -1.0])}
    state = learner.begin(params, torch.zeros(2, 0))
    outputs, _ = learner.predict(state, torch.tensor([[[3.0]], [[-1.0]]]))
    assert outputs.tolist() == [[[6.5, -1.0]], [[-1.5, -1.0]]]


@pytest.mark.parametrize("spec", [Spec((1,), 2, "discrete"), Spec((3, 8, 8), 1, "continuous")])
def test_what_the_learner_cannot_serve_is_refused(unadapted: ModuleType, spec: Spec) -> None:
    with pytest.raises(ValueError, match="unadapted needs vector observations and continuous actions"):
        unadapted.Unadapted().build(spec)


CHECK = """
import sys
import torch
from metarl.plugins import available, load
from metarl.types import policy_of
found = [plugin for group in ("tasks", "algorithms") for plugin in available(group)]
for plugin in found:
    if plugin.package == "metarl-example-plugin":
        print(plugin.name, plugin.version, plugin.summary, plugin.problem, sep=" | ")
print(sum(plugin.package == "metarl-toolkit" for plugin in found) > 0)
family, algorithm = load("tasks", "reach")(), load("algorithms", "unadapted")()
assert sys.modules["metarl"].__file__.startswith(sys.argv[1])
learner, rng = algorithm.build(family.spec), torch.Generator().manual_seed(0)
tasks = family.sample(2, "test", rng)
print(tuple(tasks.rollout(policy_of(learner, learner.begin(learner.init(rng), tasks.descriptors)), rng).actions.shape))
"""


@pytest.mark.slow
def test_installed_beside_metarl_both_plugins_are_found_and_work(tmp_path: Path) -> None:
    site, wheels, elsewhere = tmp_path / "site", tmp_path / "wheels", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for project in (ROOT, EXAMPLE):
        run(["build", "--no-isolation", "--wheel", "--outdir", str(wheels), str(project)], ROOT)
    run(["pip", "install", "--no-deps", "--no-index", "--target", str(site), *map(str, wheels.iterdir())], ROOT)
    code = f"import sys; sys.path.insert(0, {str(site)!r})\n{CHECK}"
    done = subprocess.run([sys.executable, "-c", code, str(site)], cwd=elsewhere, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "reach | 0.1.0 | A point on a line reaches a goal in [-distance, distance] that it cannot see. | ",
        "unadapted | 0.1.0 | One linear policy for all tasks, which never adapts: a floor for other algorithms. | ",
        "True",
        "(2, 10, 20, 1)",
    ]


def run(module: list[str], folder: Path) -> None:
    done = subprocess.run([sys.executable, "-m", *module], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
