"""Films: policies act in single environments, and are filmed before and after adaptation."""

import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image
from support.synthetic import collected

import metarl
from metarl.cli import main
from metarl.control.gymnasium_family import GymnasiumFamily
from metarl.control.sampling import Sampling
from metarl.evaluation import acting_by_the_mean
from metarl.pictures import video
from metarl.pictures.frames import frame_of
from metarl.pictures.video import Clip
from metarl.runs import layout
from metarl.seeding import stream
from metarl.trained import Trained, films
from metarl.types import Family, Spec
from metarl_envs.bandit import Bandit
from metarl_envs.navigation import PointNavigation
from metarl_envs.tabular import TabularMDP

NAVIGATION = PointNavigation(action_unit=0.5, sampling=Sampling(episodes=3, horizon=6))


class Counter(gymnasium.Env[Any, Any]):
    """Counts its steps up to ``last``; 8 x 16 pictures are as bright as the count."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}  # noqa: RUF012
    observation_space = spaces.Box(0, 10, (1,), np.float32)
    action_space = spaces.Box(-2.0, 4.0, (1,), np.float32)

    def __init__(self, last: int = 3, render_mode: str | None = None):
        self.last, self.render_mode, self.count, self.acted = last, render_mode, 0, list[float]()

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        self.acted.append(float(action[0]))
        return np.full(1, self.count, np.float32), float(self.count), self.count >= self.last, False, {}

    def render(self) -> Any:
        assert self.render_mode == "rgb_array"
        return np.full((8, 16, 3), 10 * self.count, np.uint8)


COUNTERS = GymnasiumFamily(Counter, spaces.Dict(last=spaces.Discrete(3, start=2)), sampling=Sampling(2, 5))


def run_of(family: Family, folder: Path, algorithm: Any = None) -> Path:
    settings = metarl.Settings(iterations=1, meta_batch_size=2)
    metarl.train(algorithm or metarl.MAML(), family, settings=settings, out=folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on navigation; not to be changed."""
    return run_of(NAVIGATION, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


# The single environment that stands for the lanes


@pytest.mark.parametrize(
    "family",
    [NAVIGATION, Bandit(arms=3), TabularMDP(states=3, actions=2), COUNTERS],
    ids=lambda family: type(family).__name__,
)
def test_a_policy_meets_the_same_spaces_in_single_environments_and_lanes(family: Any) -> None:
    tasks = family.sample(2, "test", torch.Generator().manual_seed(0))
    lanes = family.environment(2, torch.device("cpu"))
    env = family.single({name: values[1].numpy() for name, values in tasks.parameters.items()}, None)
    assert env.observation_space.shape == lanes.single_observation_space.shape
    assert env.action_space == lanes.single_action_space
    env.reset(seed=0)
    lanes.reset(seed=0, options=dict(tasks.parameters))
    if family in (NAVIGATION, COUNTERS):  # the others draw random numbers, in another order
        action = np.full(lanes.action_space.shape, 0.1, np.float32)
        action = torch.as_tensor(action) if getattr(lanes, "device", None) else action
        told, (observation, reward, *_) = lanes.step(action), env.step(np.asarray(action[1]))
        assert (np.asarray(told[0][1]) == observation).all() and float(told[1][1]) == reward


def test_lanes_of_gymnasium_environments_stretch_actions_and_so_does_the_single_one() -> None:
    env = COUNTERS.single({"last": 4}, "rgb_array")
    with pytest.raises(gymnasium.error.ResetNeeded, match="must be reset before it is rendered"):
        env.render()
    env.reset(seed=0)
    env.step(np.array([-1.0]))
    env.step(np.array([0.0]))
    told = env.step(np.array([5.0]))
    assert env._made.acted == [-2.0, 1.0, 4.0]
    assert (told[1], told[2]) == (3.0, False)
    assert env.step(np.array([0.0]))[2] is True
    assert env.render().max() == 40
    env.reset(options={"last": 2})
    assert env._made.last == 2


# Films


def test_every_step_leaves_a_frame_until_the_episode_ends() -> None:
    recorder = films.Recorder(Counter(last=2, render_mode="rgb_array"), height=4)
    recorder.reset(seed=0)
    told = [recorder.step(np.zeros((1, 1)))[1:4] for _ in range(3)]
    assert [(reward[0], ended[0], cut[0]) for reward, ended, cut in told] == [
        (1.0, False, False), (2.0, True, False), (0.0, True, False)
    ]  # fmt: skip
    assert [frame.max() for frame in recorder.frames] == [0, 10, 20]
    assert recorder.frames[0].shape == (4, 8, 3)
    assert recorder.fps == 7


@pytest.mark.parametrize("mean", [False, True])
def test_a_film_shows_the_adapted_policies(trained: Path, mean: bool) -> None:
    opened = metarl.open_run(trained)
    tasks = opened.tasks(2)
    clips, fps = films.film(opened, tasks, steps=1, seed=3, mean=mean, height=50)
    assert ([len(row) for row in clips], fps) == ([2, 2], 10)
    assert all(len(clip.frames) == 7 and clip.frames[0].shape == (50, 50, 3) for row in clips for clip in row)
    # The second task's second clip, played again in the family's own lanes.
    task = opened.task(goal=tasks.parameters["goal"][1].tolist())
    state = opened.adapt(task, steps=1, seed=4)[1].state
    learner = acting_by_the_mean(opened.learner) if mean else opened.learner
    env = NAVIGATION.environment(1, torch.device("cpu"))
    again = collected(env, learner, state, 1, 6, stream(3, "render", 1, 1), dict(task.parameters))
    assert clips[1][1].caption == f"after 1 step, return {again.rewards.sum():.1f}"
    assert clips[1][0].caption.startswith("before adaptation, return -")


def test_a_policy_with_memory_is_filmed_along_one_lane(tmp_path: Path) -> None:
    family = Bandit(arms=3, sampling=Sampling(episodes=4, horizon=5))
    opened = metarl.open_run(run_of(family, tmp_path / "run", metarl.load("algorithms", "rl2")(hidden=8)))
    clips, _ = films.film(opened, opened.tasks(1), steps=2)
    assert [clip.caption.partition(",")[0] for clip in clips[0]] == [
        "before adaptation",
        "after 1 step",
        "after 2 steps",
    ]
    assert [len(clip.frames) for clip in clips[0]] == [6, 6, 6]


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_certain_policies_do_what_is_most_likely(kind: Any) -> None:
    outputs = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    distribution = Spec((1,), 2 if kind == "continuous" else 4, kind).distribution
    drawn = distribution.sample(distribution.certain(outputs), torch.Generator().manual_seed(1))
    assert torch.equal(drawn, distribution.mode(outputs))


@dataclass(frozen=True)
class Other(PointNavigation):
    """Navigation whose single environment does not fit."""

    def single(self, parameters: Mapping[str, Any], render_mode: str | None = None) -> Any:
        return Counter(render_mode=render_mode)


@dataclass(frozen=True)
class Unseen(PointNavigation):
    """Navigation without a single environment."""

    single: Any = None


def test_families_without_a_single_environment_that_fits_are_refused(trained: Path) -> None:
    with pytest.raises(ValueError, match="Unseen cannot be rendered: it has no method single"):
        films.single_of(Unseen())
    with pytest.raises(ValueError, match="Sinusoid cannot be rendered"):
        films.single_of(metarl.load("tasks", "sinusoid")())
    opened = metarl.open_run(trained)
    object.__setattr__(opened, "family", Other())
    with pytest.raises(ValueError, match="which is not what"):
        films.film(opened, opened.tasks(1))


def test_titles_name_few_numbers() -> None:
    tasks = NAVIGATION.sample(2, "test", torch.Generator().manual_seed(0))
    goal = tasks.parameters["goal"][1].tolist()
    assert films.title(tasks, 1) == f"goal = {goal[0]:.2f}, {goal[1]:.2f}"
    assert films.title(TabularMDP().sample(2, "test", torch.Generator()), 1) == "task 1"


# Files


def clip(length: int, shade: int = 0) -> Clip:
    return Clip("caption", [np.full((40, 120, 3), shade + 10 * time, np.uint8) for time in range(length)])


def frames_of(path: Path) -> list[Image.Image]:
    with Image.open(path) as film:
        return [_frame(film, number) for number in range(getattr(film, "n_frames", 1))]


def _frame(film: Image.Image, number: int) -> Image.Image:
    film.seek(number)
    return film.convert("RGB")


@pytest.mark.parametrize("fps", [20, 50, 125, 1000])
def test_a_gif_lasts_as_long_as_what_it_shows(tmp_path: Path, fps: int) -> None:
    """Browsers show a frame of less than 20 ms for 100 ms."""
    frames = [np.full((8, 16, 3), 250 * (number % 2), np.uint8) for number in range(121)]
    told = []
    with Image.open(video.write([("", [Clip("", frames)])], tmp_path / "film.gif", fps)) as film:
        for number in range(film.n_frames):
            film.seek(number)
            told.append(film.info["duration"])
    assert min(told) >= 20 and sum(told) / 1000 == pytest.approx(video.STILL + 120 / fps, abs=0.03)


def test_a_gif_shows_clips_side_by_side_and_waits_for_the_longest(tmp_path: Path) -> None:
    rows = [("first", [clip(3), clip(2, 100)]), ("second", [clip(2), clip(3)])]
    path = video.write(rows, tmp_path / "film.gif", fps=10)
    frames = frames_of(path)
    assert [frame.size for frame in frames] == [(240, 2 * (2 * video.STRIP + 40))] * 3
    middle = 2 * video.STRIP + 20
    assert [frame.getpixel((60, middle))[0] for frame in frames] == pytest.approx([0, 10, 20], abs=4)
    ended = 110 + (255 - 110) * video.FADED
    assert [frame.getpixel((180, middle))[0] for frame in frames] == pytest.approx([100, 110, ended], abs=8)
    with Image.open(path) as film:
        assert (film.info["duration"], film.info["loop"]) == (100, 0)


def test_captions_fit(tmp_path: Path) -> None:
    narrow = Clip("a caption that is wider than its picture", [np.zeros((20, 10, 3), np.uint8)] * 2)
    (frame,) = frames_of(video.write([("", [narrow])], tmp_path / "film.gif", fps=10))
    assert frame.width > 200


# imageio-ffmpeg's reader leaves its pipes to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_an_mp4_has_the_same_pictures(tmp_path: Path) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="MP4 needs imageio-ffmpeg")
    path = video.write([("row", [clip(4, 60), clip(4)])], tmp_path / "film.mp4", fps=5)
    reader = ffmpeg.read_frames(str(path))
    size = next(reader)["size"]
    assert size == (240, 2 * video.STRIP + 40)
    frames = [np.frombuffer(frame, np.uint8).reshape(size[1], size[0], 3) for frame in reader]
    assert len(frames) == 4 + 5  # the last one stays for a second
    assert [int(frame[-20, 60, 0]) for frame in frames[:4]] == pytest.approx([60, 70, 80, 90], abs=6)


def test_formats_that_cannot_be_written_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"neither \.gif nor \.mp4"):
        video.write([("", [clip(1)])], tmp_path / "film.avi", 10)
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "metarl-toolkit\[render\]"'):
        video.check_suffix(Path("film.mp4"))
    assert list(tmp_path.iterdir()) == []


# The command


def test_the_command_writes_a_film_into_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", str(run), "--steps", "1", "--height", "60", "--tasks", "2"]) == 0
    assert capsys.readouterr().out == f"wrote {run}/render.gif\n"
    assert frames_of(run / "render.gif")[0].height == 2 * (2 * video.STRIP + 60)
    assert "render.gif" in layout.PICTURES


def test_the_same_request_gives_the_same_film(run: Path, tmp_path: Path) -> None:
    films = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        out = tmp_path / "new" / f"{name}.gif"
        chosen = ["--task", "goal=0.25,-0.5", "--seed", seed, "--checkpoint", "best", "--fps", "5"]
        assert main(["render", str(run), "--out", str(out), "--steps", "0", "--height", "60", *chosen]) == 0
        films.append(out.read_bytes())
    assert films[0] == films[1] != films[2]


def test_runs_of_examples_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of(metarl.load("tasks", "sinusoid")(), tmp_path / "run")
    assert main(["render", str(folder)]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("metarl: Sinusoid cannot be rendered") and told.err.count("\n") == 1


def test_films_are_made_without_a_display_library(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    assert main(["render", str(run), "--steps", "0", "--height", "60"]) == 0


@pytest.mark.parametrize(
    ("rendered", "pixel"),
    [
        (np.full((4, 6, 3), 0.5), 128),
        (np.full((4, 6, 3), 200.0, np.float32), 200),
        (np.full((4, 6, 3), 200, np.int64), 200),
        (np.full((4, 6), 7, np.uint8), 7),
        (np.full((4, 6, 1), 7, np.uint8), 7),
        (np.full((3, 4, 6), 7, np.uint8), 7),
        (np.full((4, 6, 4), 7, np.uint8), 7),
        (np.ones((4, 6), bool), 255),
        ([np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 3), 9, np.uint8)], 9),
        (np.full((4, 6, 3), 9, np.uint8).tolist(), 9),
        (Image.new("RGB", (6, 4), (9, 9, 9)), 9),
        (torch.full((4, 6, 3), 0.5), 128),
    ],
)
def test_frames_of_any_usual_form(rendered: Any, pixel: int) -> None:
    frame = frame_of(rendered)
    assert (frame.shape, frame.dtype, np.unique(frame).tolist()) == ((4, 6, 3), np.uint8, [pixel])
    assert frame_of(rendered, height=8).shape == (8, 12, 3)


@pytest.mark.parametrize(
    ("rendered", "told"),
    [
        ("hello", "render() returned str, no picture: expected an array [height, width, 3] of uint8"),
        (None, "render() returned NoneType, no picture"),
        ([], "render() returned list, no picture"),
        (np.zeros((4, 6, 2)), "render() returned float64 (4, 6, 2), no picture"),
        (np.full((4, 6, 3), 300), "render() returned pixels from 300.0 to 300.0: expected 0 to 255, or 0 to 1"),
        (np.full((4, 6, 3), np.nan), "render() returned pixels from nan to nan"),
    ],
)
def test_what_is_no_picture_is_refused_before_anything_is_adapted(
    rendered: Any, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counter, "render", lambda self: rendered)
    learner = metarl.MAML().build(COUNTERS.spec)
    trained = Trained(metarl.MAML(), COUNTERS, learner, {}, torch.device("cpu"), 0)
    with pytest.raises(ValueError, match=re.escape(f"GymnasiumFamily cannot be rendered: {told}")[:-1]):
        films.film(trained, trained.tasks(1))


def test_environments_without_pictures_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unseen.py").write_text(
        "import gymnasium, numpy as np\n"
        "from gymnasium import spaces\n"
        "from metarl import GymnasiumFamily, Sampling\n"
        "class Unseen(gymnasium.Env):\n"
        "    observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,))\n"
        "    def __init__(self, g): self.g = g\n"
        "    def reset(self, *, seed=None, options=None): return np.full(1, self.g / 9, np.float32), {}\n"
        "    def step(self, action): return np.full(1, self.g / 9, np.float32), 0.0, False, False, {}\n"
        "unseen = GymnasiumFamily(Unseen, spaces.Dict(g=spaces.Box(1.0, 2.0)), sampling=Sampling(2, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    options = ["--iterations", "1", "--meta-batch-size", "2", "--quiet", "--out", "run"]
    assert main(["train", "maml", "unseen:unseen", *options]) == 0
    capsys.readouterr()
    assert main(["render", "run"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("metarl: GymnasiumFamily cannot be rendered:") and "render_mode" in told
    assert told.count("\n") == 1
