import pickle
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from metaworld.evaluation import metalearning_evaluation

import metarl_metaworld
import metaworld
from metarl import MAML, Settings, evaluate, open_run, train
from metarl.algorithms import RL2
from metarl.control import Sampling
from metarl.environments import LaneError, LaneOptions, Lanes
from metarl.testing import check_family
from metarl.types import Spec, Split
from metarl_metaworld.agent import MetaLearningAgent
from metarl_metaworld.families import ML1, ML10, ML45
from metarl_metaworld.kinds import KindLanes
from metarl_metaworld.manipulation import Manipulation
from metarl_metaworld.tasks import suite

SHORT = Sampling(episodes=2, horizon=10)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def reach() -> ML1:
    return ML1(sampling=SHORT, workers=1)


def test_one_environment_steps_as_metaworld_does() -> None:
    own = metaworld.ML1("reach-v3", seed=0)
    env, theirs = Manipulation(suite("ML1", "reach-v3", 0).tasks), own.train_classes["reach-v3"]()
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 4)).astype(np.float32)
    for number, task in ((3, own.train_tasks[3]), (57, own.test_tasks[7]), (3, own.train_tasks[3])):
        theirs.set_task(task)
        np.testing.assert_array_equal(env.reset(seed=1, options={"task": number})[0], theirs.reset()[0])
        for action in actions:
            told, expected = env.step(action), theirs.step(action)
            np.testing.assert_array_equal(told[0], expected[0])
            assert told[1:] == expected[1:]
        assert told[0][-3:].tolist() == [0, 0, 0], "the goal is hidden"
        assert "success" in told[4]


def test_it_passes_gymnasiums_checker() -> None:
    with pytest.warns(UserWarning):  # observations are unbounded, as Meta-World's are
        check_env(Manipulation(suite("ML1", "reach-v3", 0).tasks), skip_render_check=True)


def test_the_kind_of_task_may_change() -> None:
    tasks = (*metaworld.ML1("reach-v3", seed=0).train_tasks[:1], *metaworld.ML1("push-v3", seed=0).train_tasks[:1])
    env = Manipulation(tasks)
    starts = [env.reset(options={"task": number})[0] for number in (0, 1, 0)]
    np.testing.assert_array_equal(starts[0], starts[2])
    assert not np.array_equal(starts[0], starts[1])
    np.testing.assert_array_equal(env.reset()[0], starts[0])
    env.close()


def test_the_contract(reach: ML1) -> None:
    check_family(reach)


def test_train_and_test_tasks(reach: ML1) -> None:
    own = metaworld.ML1("reach-v3", seed=0)
    train, test = (reach.sample(50, split, generator()) for split in ("train", "test"))
    assert sorted(train.parameters["task"].tolist()) == list(range(50))
    assert sorted(test.parameters["task"].tolist()) == list(range(50, 100))
    first = int(test.parameters["task"][0]) - 50
    expected = pickle.loads(own.test_tasks[first].data)["rand_vec"]
    torch.testing.assert_close(test.descriptors[0].double().numpy(), expected, rtol=1e-6, atol=0)
    assert set(reach.sample(7, "validation", generator()).parameters["task"].tolist()) <= set(range(50))
    assert len(set(reach.sample(60, "train", generator()).parameters["task"].tolist())) == 50
    assert reach.spec == Spec((39,), 4, "continuous", 6)


def test_ml10_samples_kinds_in_turn() -> None:
    family = ML10(sampling=SHORT)
    train, test = (family.sample(20, split, generator()) for split in ("train", "test"))
    kinds = [number // 50 for number in train.parameters["task"].tolist()]
    assert sorted(kinds[:10]) == sorted(kinds[10:]) == list(range(10))
    assert kinds[:10] == kinds[10:]
    assert sorted(number // 50 for number in test.parameters["task"].tolist()) == sorted([*range(10, 15)] * 4)
    assert len(set(train.parameters["task"].tolist())) == 20
    assert train.descriptors.shape == (20, family.spec.descriptor_size) == (20, 21)
    assert train.descriptors[:, :15].argmax(1).tolist() == kinds
    alone = {int(family.sample(1, "train", generator(seed)).parameters["task"]) // 50 for seed in range(30)}
    assert len(alone) > 5, "one task may be of any kind"


@pytest.mark.parametrize("split", ["train", "test"])
def test_tasks_do_not_depend_on_their_number(reach: ML1, split: Split) -> None:
    for family in (reach, ML10(sampling=SHORT)):
        many = family.sample(120, split, generator())
        for number in (1, 3, 60):
            few = family.sample(number, split, generator())
            assert torch.equal(few.parameters["task"], many.parameters["task"][:number])
            assert torch.equal(few.descriptors, many.descriptors[:number])


class Counting(gymnasium.Env):
    """Observes its task, how often it was given a task of another kind, and its steps. Task 9 fails at its second."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), dtype=np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)

    def __init__(self) -> None:
        self.task, self.changes, self.steps = -5, 0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        task = int((options or {}).get("task", self.task))
        self.changes += task // 5 != self.task // 5
        self.task, self.steps = task, 0
        return self.observed(), {}

    def step(self, action):
        self.steps += 1
        if self.task == 9 and self.steps == 2:
            raise ValueError("tired")
        return self.observed(), self.task + float(action[0]), self.task == 3, False, {"success": self.task == 3}

    def observed(self):
        return np.array([self.task, self.changes, self.steps], dtype=np.float64)


def test_lanes_in_any_order_simulate_one_kind_each() -> None:
    tasks, spec = gymnasium.spaces.Dict(task=gymnasium.spaces.Discrete(10)), Spec((3,), 1, "continuous", 1)
    env = KindLanes(Lanes(LaneOptions(Counting, tasks, "options", spec, 4, 5, "float64")), [0] * 5 + [1] * 5)
    actions = np.array([[0.1], [0.2], [0.3], [0.4]])
    for order in ([0, 8, 3, 7], [6, 3, 0, 5], [2, 1, 6, 5]):
        assert env.reset(options={"task": np.array(order)})[0][:, 0].tolist() == order
        observations, rewards, terminated, truncated, infos = env.step(actions)
        assert observations[:, 0].tolist() == order
        assert (observations[:, 1] <= 2).all(), "no simulation changed its kind after the first reset"
        np.testing.assert_allclose(rewards, np.array(order) + actions[:, 0], rtol=1e-6)
        assert terminated.tolist() == infos["success"].astype(bool).tolist() == [task == 3 for task in order]
        assert not truncated.any()
    mask = np.array([False, True, False, True])
    observations, _ = env.reset(options={"task": np.array([9, 0, 9, 9]), "reset_mask": mask})
    assert observations[:, 0].tolist() == [2, 0, 6, 9]
    assert observations[:, 2].tolist() == [1, 0, 1, 0]
    env.step(actions)
    with pytest.raises(LaneError, match=r"lanes \[3\], which here are numbered by kind: .*tired") as caught:
        env.step(actions)
    assert caught.value.lanes == [3]
    with pytest.raises(ValueError, match=r"actions of shape \(2, 1\)"):
        env.step(actions[:2])
    env.close()


def test_ml45_has_its_kinds() -> None:
    kinds = {*metaworld.env_dict.ML45_V3["train"], *metaworld.env_dict.ML45_V3["test"]}
    assert len(kinds) + 6 == ML45().spec.descriptor_size == 56


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"env='reach-v2': expected one of assembly-v3, .*reach-v3"):
        ML1("reach-v2")
    with pytest.raises(ValueError, match="workers=0: expected at least 1"):
        ML45(workers=0)
    with pytest.raises(ValueError, match="at least one task is needed, not 0"):
        ML1().sample(0, "train", generator())


def test_training_on_workers_logs_success(tmp_path: Path) -> None:
    rows = []
    for workers in (1, 2):
        family = ML1(sampling=SHORT, workers=workers)
        result = train(MAML(), family, settings=Settings(iterations=2, meta_batch_size=2), out=tmp_path / str(workers))
        rows.append([{name: row[name] for name in row if "/step_" in name} for row in result.rows])
    assert rows[0] == rows[1]
    assert sorted(rows[0][0]) == ["return/step_0", "return/step_1", "success/step_0", "success/step_1"]
    evaluation = evaluate(result.learner, result.params, family, tasks=2, steps=1)
    assert evaluation.scores["success"].shape == (2, 2)
    family._pools.clear()
    trained = open_run(tmp_path / "2")
    protocol(MetaLearningAgent(trained))


def protocol(agent: MetaLearningAgent) -> None:
    """Run Meta-World's own evaluation, with episodes of 8 steps."""
    told = {"env_name": "reach-v3", "seed": 0, "meta_batch_size": 2, "max_episode_steps": 8, "total_tasks_per_cls": 2}
    envs = gymnasium.make_vec("Meta-World/ML1-test", **told)
    success, mean_return, by_task = metalearning_evaluation(
        agent, envs, num_evals=1, adaptation_steps=2, adaptation_episodes=2, evaluation_episodes=1
    )
    envs.close()
    assert 0 <= success <= 1
    assert 0 < mean_return < 8 * 10
    assert by_task == {"reach-v3": success}


def test_the_agent_refuses_a_policy_with_memory(reach: ML1, tmp_path: Path) -> None:
    train(RL2(), reach, settings=Settings(iterations=1, meta_batch_size=2), out=tmp_path / "run")
    with pytest.raises(ValueError, match="a policy of continuous actions that adapts by inner steps"):
        MetaLearningAgent(open_run(tmp_path / "run"))


def test_versions_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert metarl_metaworld.misfit() is None
    assert metarl_metaworld.misfit("4.0") == (
        "metaworld>=4.0 is needed, but metaworld 3.1.1 is installed beside metaworld 3.1.1"
    )
    installed = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "4.0.0" if name == "mujoco" else installed(name))
    assert metarl_metaworld.misfit() == (
        "mujoco==3.3.0 is needed, but mujoco 4.0.0 is installed beside metaworld 3.1.1"
    )


def test_importing_with_versions_that_do_not_fit_says_what_to_do() -> None:
    code = (
        "from importlib import metadata\n"
        "real = metadata.version\n"
        "metadata.version = lambda name: '4.0.0' if name == 'mujoco' else real(name)\n"
        "import metarl_metaworld\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    said = run.stderr.splitlines()[-1]
    assert said.startswith("ImportError: mujoco==3.3.0 is needed, but mujoco 4.0.0 is installed")
    assert "pip install -c plugins/metaworld/constraints.txt" in said
