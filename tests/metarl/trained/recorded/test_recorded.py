"""Saved episodes: what stands in the files, that they lead back to the same policy, and what is refused."""

import importlib.util
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from support.cameras import Slider, sliders
from support.spaces_envs import MOVES, SEEN, Dials
from torch import Tensor

import metarl
from metarl import Episode, GymnasiumFamily, Sampling, Settings, Trained, evaluate, evaluation, train
from metarl.algorithms import MAML, RL2
from metarl.cli import DONE, WRONG, main
from metarl.files import WriteError
from metarl.networks import Network
from metarl.trained.recorded import archive
from metarl_envs.navigation import PointNavigation
from metarl_plugins.sinusoid import Sinusoid

ONE = Settings(iterations=1, meta_batch_size=2, device="cpu")
SMALL = Network(hidden=(5,), activation="tanh")
NEEDS_MINARI = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("minari", "h5py"))),
    reason="Minari is optional: pip install 'metarl-toolkit[minari]'",
)
PLACES = ["episodes.npz", pytest.param("minari:a-test/episodes-v0", marks=NEEDS_MINARI)]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minari").mkdir()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def dials() -> GymnasiumFamily:
    """Several choices, and observations of all kinds of parts."""
    return GymnasiumFamily(
        lambda: Dials(acts=MOVES, sees=SEEN), spaces.Dict(goal=spaces.Box(-1.0, 1.0)), apply="attribute",
        sampling=Sampling(episodes=3, horizon=5),
    )  # fmt: skip


class Bounded(gymnasium.Env):
    """The bounds of its actions depend on the task, and it is discrete to look at. It ends by chance."""

    observation_space = spaces.Discrete(3, start=4)

    def __init__(self, reach: float = 1.0) -> None:
        self.action_space = spaces.Box(np.array([-reach], np.float32), np.array([3 * reach], np.float32))
        self.done: list[Any] = []

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return 4, {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        seen = int(self.np_random.integers(4, 7))
        return seen, float(action[0]), self.np_random.random() < 0.3, self.np_random.random() < 0.2, {}


def bounded() -> GymnasiumFamily:
    return GymnasiumFamily(Bounded, spaces.Dict(reach=spaces.Box(0.5, 2.0)), sampling=Sampling(episodes=4, horizon=6))


def leaves(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, tuple) else ()
    return [leaf for part in parts for leaf in leaves(part)]


FAMILIES: dict[str, Any] = {
    "navigation": lambda: PointNavigation(sampling=Sampling(episodes=3, horizon=8)),
    "pictures": lambda: sliders(ends=4),
    "a picture": lambda: sliders(speed=False),
    "choices": dials,
    "bounds of tasks": bounded,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_adapting_to_saved_episodes_leads_to_the_same_policy(make: Any, mean: bool, place: str) -> None:
    run = train(MAML(network=SMALL, steps=2), make(), settings=ONE)
    found = evaluate(run.learner, run.params, run.family, tasks=3, steps=2, mean=mean)
    metarl.save_rollouts(place, found, run.family)
    expected = evaluation.adapt(run.learner, run.params, found.tasks, 2)
    for task in (0, 2):
        saved = metarl.load_episodes(place, task)
        assert len(saved) == 3
        adapted = run.adapt_to(saved[:-1])
        one, all_of_them = leaves(adapted.state), leaves(expected[-1].state)
        compared = [(mine[0], theirs[task]) for mine, theirs in zip(one, all_of_them, strict=True) if len(theirs) == 3]
        assert compared
        for mine, theirs in compared:
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
        lengths = [len(episode.rewards) for episode in saved[-1]]
        assert lengths == expected[-1].rollout.mask[task].sum(-1).tolist(), "real steps only"
    if mean:
        noiseless = metarl.load_episodes(place, 1, deterministic=True)
        returns = [float(np.sum(episode.rewards)) for episode in noiseless[2]]
        assert np.mean(returns) == pytest.approx(float(found.scores["return"][2, 1]), rel=1e-5)
        assert noiseless[0][0].log_probs is None
    elif bool(torch.isfinite(found.scores["return"]).all()):
        with pytest.raises(ValueError, match=r"holds no .*of task 1"):
            metarl.load_episodes(place, 1, deterministic=True)


def saved(run: Trained, place: str = "episodes.npz", **options: Any) -> dict[str, Any]:
    found = evaluate(run.learner, run.params, run.family, **{"tasks": 2, "steps": 1, **options})
    metarl.save_rollouts(place, found, run.family)
    with np.load(place, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def test_observations_and_actions_are_the_environments_own() -> None:
    seen, acted = list[Any](), list[Any]()

    class Watched(Dials):
        def reset(self, **words: Any) -> Any:
            found = super().reset(**words)
            seen.append(found[0])
            return found

        def step(self, action: Any) -> Any:
            found = super().step(action)
            seen.append(found[0])
            acted.append(action.copy())
            return found

    family = GymnasiumFamily(
        lambda: Watched(acts=MOVES, sees=SEEN), spaces.Dict(goal=spaces.Box(-1.0, 1.0)), apply="attribute",
        sampling=Sampling(episodes=1, horizon=4),
    )  # fmt: skip
    learner = MAML(network=SMALL).build(family.spec)
    params = learner.init(torch.Generator().manual_seed(0))
    seen.clear(), acted.clear()
    found = evaluate(learner, params, family, tasks=1, steps=0)
    metarl.save_rollouts("episodes.npz", found, family)
    ((episode,),) = metarl.load_episodes("episodes.npz")
    assert set(episode.observations) == set(SEEN.spaces)
    for time, observation in enumerate(seen[-5:]):
        own = {
            "arm": {name: values[time] for name, values in episode.observations["arm"].items()},
            "pair": tuple(np.asarray(values[time]) for values in episode.observations["pair"]),
            **{name: episode.observations[name][time] for name in ("flags", "image")},
        }
        assert own in SEEN
        np.testing.assert_array_equal(own["image"], observation["image"])
        np.testing.assert_array_equal(own["arm"]["angle"], observation["arm"]["angle"])
        np.testing.assert_array_equal(own["pair"][0], observation["pair"][0])
    np.testing.assert_array_equal(episode.actions, np.stack(acted[-4:]))
    assert all(action in MOVES for action in episode.actions)


def test_actions_are_scaled_and_clipped_as_they_were_executed() -> None:
    run = train(MAML(network=SMALL), bounded(), settings=ONE)
    arrays = saved(run)
    episodes = np.repeat(np.arange(len(arrays["length"])), arrays["length"])
    reach = arrays["parameters/reach"][arrays["task"][episodes], 0]
    actions, drawn = arrays["actions"][:, 0], arrays["policy_actions"][:, 0]
    np.testing.assert_allclose(actions, reach + 2 * reach * np.clip(drawn, -1, 1), rtol=1e-5)
    np.testing.assert_allclose(arrays["rewards"], actions, rtol=1e-5)  # the environment got them
    assert (np.abs(drawn) > 1).any() and set(arrays["observations"]) == {4, 5, 6}


def test_the_file_holds_what_its_page_says() -> None:
    run = train(MAML(network=SMALL), sliders(ends=4), settings=ONE)
    arrays = saved(run, tasks=2, steps=1)
    count, steps = 2 * 2 * 3, 2 * 2 * 3 * 4
    for name in archive.BY_EPISODE:
        assert arrays[name].shape == (count,), name
    for name in archive.BY_STEP:
        assert len(arrays[name]) == steps, name
    assert arrays["observations/camera"].shape == (steps + count, 8, 12, 3)
    assert arrays["observations/camera"].dtype == np.uint8
    assert arrays["observations/arm/fast"].shape == (steps + count,)
    assert arrays["parameters/goal"].shape == (2, 1)
    assert set(arrays["task"]) == {0, 1} and set(arrays["step"]) == {0, 1} and set(arrays["number"]) == {0, 1, 2}
    assert set(arrays["success"]) <= {0.0, 1.0}
    assert not arrays["deterministic"].any() and (arrays["length"] == 4).all()
    ends = np.cumsum(arrays["length"]) - 1
    assert arrays["terminations"][ends].all() and arrays["terminations"].sum() == count
    assert not arrays["truncations"].any()
    assert np.isfinite(arrays["log_probs"]).all()
    horizon = saved(train(MAML(network=SMALL), sliders(), settings=ONE), "other.npz")
    assert horizon["truncations"].sum() == count and not horizon["terminations"].any()


def test_log_probabilities_are_of_what_the_policy_drew() -> None:
    run = train(MAML(network=SMALL), sliders(), settings=ONE)
    arrays = saved(run, tasks=1, steps=0)
    observations = {
        "camera": arrays["observations/camera"][:6],
        "arm": {name: arrays[f"observations/arm/{name}"][:6] for name in ("speed", "fast")},
    }
    policy = run.policy(run.tasks(1), steps=0)
    expected = policy(observations).log_prob(torch.from_numpy(arrays["policy_actions"][:6]))
    np.testing.assert_allclose(arrays["log_probs"][:6], expected.numpy(), rtol=1e-4, atol=1e-4)


def test_policies_with_memory_are_saved_too() -> None:
    run = train(RL2(hidden=4), PointNavigation(sampling=Sampling(episodes=2, horizon=4)), settings=ONE)
    assert len(saved(run)["actions"]) > 0


def test_a_file_is_written_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(MAML(network=SMALL), PointNavigation(sampling=Sampling(episodes=2, horizon=4)), settings=ONE)
    saved(run)
    before = Path("episodes.npz").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("metarl.files.os.fsync", full)
    with pytest.raises(WriteError, match=r"could not write episodes.npz: No space left.*what it held before is intact"):
        saved(run, steps=0)
    assert Path("episodes.npz").read_bytes() == before
    assert [path.name for path in Path().glob("*.tmp")] == []


@pytest.mark.parametrize("share", [0, 10, 0.3, 0.9])
def test_damaged_files_are_told_in_one_line(share: float) -> None:
    run = train(MAML(network=SMALL), PointNavigation(sampling=Sampling(episodes=2, horizon=4)), settings=ONE)
    saved(run)
    whole = Path("episodes.npz").read_bytes()
    Path("cut.npz").write_bytes(whole[: int(share) if share >= 1 else int(share * len(whole))])
    with pytest.raises(ValueError, match=r"cut.npz cannot be read as saved episodes") as told:
        metarl.load_episodes("cut.npz", 0)
    assert "\n" not in str(told.value)


def rewritten(**changes: Any) -> None:
    with np.load("episodes.npz") as file:
        arrays = {name: file[name] for name in file.files} | changes
    np.savez("changed.npz", **{name: value for name, value in arrays.items() if value is not None})


def test_files_of_another_form_are_told() -> None:
    run = train(MAML(network=SMALL), PointNavigation(sampling=Sampling(episodes=2, horizon=4)), settings=ONE)
    arrays = saved(run)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"rewards": None}, "holds no saved episodes, or is damaged: KeyError"),
        ({"rewards": arrays["rewards"][:-1]}, "rewards has .* rows where the lengths ask for"),
        ({"about": np.array('{"format": 99}')}, "has format 99; this version reads 1"),
        ({"about": np.array("nonsense")}, "changed.npz"),
        ({"actions": np.array([object()])}, "changed.npz cannot be read"),
    ]
    for changes, told in cases:
        rewritten(**changes)
        with pytest.raises(ValueError, match=told):
            metarl.load_episodes("changed.npz", 0)
    with pytest.raises(ValueError, match="it holds the episodes of 2 tasks, 0 to 1: name one"):
        metarl.load_episodes("episodes.npz")
    with pytest.raises(ValueError, match="it holds no episodes of task 7: expected one of 0 to 1"):
        metarl.load_episodes("episodes.npz", 7)
    with pytest.raises(ValueError, match="does not exist: expected a file of saved episodes"):
        metarl.load_episodes("absent.npz")
    arrays["rewards"][0] = np.nan
    rewritten(rewards=arrays["rewards"])
    with pytest.raises(ValueError, match="episode 0: rewards contain numbers that are not finite"):
        run.adapt_to(metarl.load_episodes("changed.npz", 0)[0])


def test_what_has_no_episodes_is_refused() -> None:
    run = train(MAML(network=SMALL), Sinusoid(), settings=ONE)
    found = evaluate(run.learner, run.params, run.family, tasks=2, steps=1)
    with pytest.raises(ValueError, match="there are no episodes to save: this evaluation is one of labelled examples"):
        metarl.save_rollouts("episodes.npz", found, run.family)
    for place, told in {"episodes.csv": "expected a file that ends in .npz, or minari:NAME-v0", "": "empty"}.items():
        with pytest.raises(ValueError, match=told):
            metarl.save_rollouts(place, found, run.family)


def test_minari_is_asked_for_before_anything_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="Minari is not installed: pip install 'metarl-toolkit\\[minari\\]'"):
        metarl.trained.check_recording("minari:some-v0")


@NEEDS_MINARI
def test_minari_loads_and_iterates_what_was_saved(tmp_path: Path) -> None:
    import minari

    run = train(MAML(network=SMALL), sliders(ends=4), settings=ONE)
    found = evaluate(run.learner, run.params, run.family, tasks=2, steps=1, mean=True)
    place = metarl.save_rollouts("minari:sliders/mean-v3", found, run.family)
    assert place == tmp_path / "minari" / "sliders" / "mean-v3"
    dataset = minari.load_dataset("sliders/mean-v3")
    assert dataset.total_episodes == 2 * 2 * 2 * 3 and dataset.total_steps == 4 * dataset.total_episodes
    assert dataset.observation_space == Slider().observation_space
    assert dataset.action_space == Slider().action_space
    for episode in dataset.iterate_episodes():
        assert len(episode) == 4
        assert episode.observations["camera"].shape == (5, 8, 12, 3)
        assert episode.observations["arm"]["fast"].shape == (5,)
        assert all(action in dataset.action_space for action in episode.actions)
        assert len(episode.infos["log_prob"]) == 5
    last = dataset.filter_episodes(lambda one: one.infos["adaptation_step"][0] == 1)
    assert last.total_episodes == dataset.total_episodes / 2
    ((metadata,), (one,)) = dataset.storage.get_episode_metadata([0]), [dataset[0]]
    np.testing.assert_allclose(metadata["options"]["goal"], found.tasks.parameters["goal"][one.infos["task"][0]])
    part = next(part for part in run.family.spec.observations if part.channels)
    camera = found.practice[0].observations[0, 0, 0, part.offset : part.offset + part.size].reshape(8, 12, 3) * 255
    np.testing.assert_array_equal(one.observations["camera"][0], camera.round().byte().numpy())  # nothing is lost
    assert "sliders/mean-v3" in minari.list_local_datasets()
    assert [path.name for path in (tmp_path / "minari").iterdir()] == ["sliders"]


@NEEDS_MINARI
def test_no_data_set_of_minari_is_overwritten_or_left_in_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(MAML(network=SMALL), PointNavigation(sampling=Sampling(episodes=2, horizon=4)), settings=ONE)
    found = evaluate(run.learner, run.params, run.family, tasks=2, steps=0)
    metarl.save_rollouts("minari:own-v0", found, run.family)
    with pytest.raises(ValueError, match="minari:own-v0 exists: no data set is overwritten"):
        metarl.save_rollouts("minari:own-v0", found, run.family)
    with pytest.raises(ValueError, match="minari:own is no name of a data set: expected minari:NAME-v0"):
        metarl.save_rollouts("minari:own", found, run.family)
    with pytest.raises(ValueError, match="minari:absent-v0 cannot be read as saved episodes"):
        metarl.load_episodes("minari:absent-v0")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("metarl.trained.recorded.datasets._buffer", full)
    with pytest.raises(WriteError, match="could not write minari:new-v0: No space left on device"):
        metarl.save_rollouts("minari:new-v0", found, run.family)
    assert [path.name for path in (tmp_path / "minari").iterdir()] == ["own-v0"]


def test_the_command_saves_and_adapts(capsys: pytest.CaptureFixture[str]) -> None:
    train(MAML(network=SMALL), PointNavigation(sampling=Sampling(episodes=3, horizon=5)), settings=ONE, out="run")
    words = ["evaluate", "run", "--tasks", "2", "--steps", "2", "--no-references", "--device", "cpu"]
    assert main([*words, "--save-rollouts", "episodes.npz"]) == DONE
    assert "saved the episodes: episodes.npz" in capsys.readouterr().out
    assert main(["adapt", "run", "--data", "episodes.npz", "--task", "1", "--out", "policy"]) == DONE
    told = capsys.readouterr().out
    assert "adapted to 3 saved episodes in each of 2 steps" in told and "return/step_1" in told
    run = metarl.open_run("run", device="cpu")
    expected = evaluation.adapt(run.learner, run.params, run.tasks(2), 2)[-1].state
    for mine, theirs in zip(leaves(metarl.load_model("policy").state), leaves(expected), strict=True):
        torch.testing.assert_close(mine[0], theirs[1], atol=1e-5, rtol=1e-4)

    def refused(*more: str) -> str:
        assert main(list(more)) == WRONG
        line = capsys.readouterr().err
        assert line.startswith("metarl: ") and line.count("\n") == 1
        return line

    assert "episodes.npz exists: nothing is overwritten" in refused(*words, "--save-rollouts", "episodes.npz")
    assert "expected a file that ends in .npz" in refused(*words, "--save-rollouts", "episodes.pkl")
    adapt = ["adapt", "run", "--out", "other", "--data"]
    assert "it holds the episodes of 2 tasks" in refused(*adapt, "episodes.npz")
    assert "--steps 9: expected 1 to 3" in refused(*adapt, "episodes.npz", "--task", "0", "--steps", "9")
    assert "does not exist" in refused(*adapt, "absent.npz", "--task", "0")
    assert not Path("other").exists()


def test_the_command_refuses_what_has_no_episodes(capsys: pytest.CaptureFixture[str]) -> None:
    train(MAML(network=SMALL), Sinusoid(), settings=ONE, out="run")
    assert main(["evaluate", "run", "--tasks", "2", "--save-rollouts", "episodes.npz"]) == WRONG
    told = capsys.readouterr().err
    assert "--save-rollouts is for episodes of policies: run learns regression" in told and told.count("\n") == 1


def test_actions_of_a_policy_may_be_in_ones_own_log() -> None:
    run = train(MAML(network=SMALL), PointNavigation(sampling=Sampling(episodes=2, horizon=3)), settings=ONE)
    seen, actions, rewards = np.zeros((4, 2)), np.ones((3, 2)), -np.ones(3)
    clipped, drawn = (
        run.adapt_to([Episode(seen, actions, rewards, policy_actions=own)] * 2).learnt_from[0].actions
        for own in (None, 2 * actions)
    )
    assert (clipped == 1).all() and (drawn == 2).all()
    with pytest.raises(ValueError, match="episode 0: policy_actions have shape \\(3, 1\\): expected \\(3, 2\\)"):
        run.adapt_to([Episode(seen, actions, rewards, policy_actions=actions[:, :1])])
