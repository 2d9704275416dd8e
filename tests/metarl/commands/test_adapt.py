"""``metarl adapt`` and ``metarl predict``: what they write and print, and one line for every wrong request."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import metarl
from metarl import Settings, cli
from metarl.algorithms import MAML
from metarl.algorithms.protonet import ProtoNet
from metarl.networks import Network
from metarl_envs.navigation import PointNavigation
from metarl_plugins.images import Images

SETTINGS = Settings(iterations=1, meta_batch_size=1, device="cpu")
MODULE = """
import gymnasium, numpy as np
from gymnasium import spaces

class Point(gymnasium.Env):
    observation_space, action_space = spaces.Box(-9, 9, (2,)), spaces.Box(-0.1, 0.1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = np.zeros(2), 0
        return self.place.astype(np.float32), {}

    def step(self, action):
        self.place, self.steps = self.place + action, self.steps + 1
        return self.place.astype(np.float32), -float(np.abs(self.place - 0.3).sum()), False, self.steps == 5, {}

class Broken(Point):
    def step(self, action):
        observation, *others = super().step(action)
        return (observation * np.nan if self.steps == 3 else observation), *others

class Raising(Point):
    def step(self, action):
        raise OSError("the cable is loose")

class Other(Point):
    action_space = spaces.Discrete(2)

number = 3
"""


def painted(folder: Path, each: int = 3) -> Path:
    for place, name in enumerate(("red", "blue")):
        (folder / name).mkdir(parents=True)
        for image in range(each):
            pixels = np.full((8, 8, 3), 30 * image, dtype=np.uint8)
            pixels[..., 2 * place] = 230
            Image.fromarray(pixels).save(folder / name / f"{image}.png")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    family = Images(root=painted(tmp_path / "data", 4), size=8, ways=2, queries=1, fractions=(1.0, 0.0, 0.0))
    algorithm = ProtoNet(network=Network(hidden=(8,)))
    metarl.train(algorithm, family, settings=SETTINGS, out=tmp_path / "run")
    return tmp_path / "run"


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert cli.main(list(map(str, words))) == cli.WRONG
    told = capsys.readouterr().err
    assert told.startswith("metarl: ") and told.count("\n") == 1
    return told


@pytest.mark.filterwarnings("ignore:.*files show the same picture")
def test_pictures_become_a_model_that_predicts(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, out = painted(tmp_path / "own"), tmp_path / "model"
    assert cli.main(["adapt", str(pictures), "--data", str(own), "--out", str(out)]) == cli.DONE
    assert "adapted to 6 examples of 2 classes: blue, red" in capsys.readouterr().out
    files = [own / "red" / "1.png", own / "blue" / "0.png"]
    assert cli.main(["predict", str(out), *map(str, files)]) == cli.DONE
    head, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert head == ["file", "class", "probability"]
    model = metarl.load_model(out)
    chances = model.predict_proba(files).max(1)
    assert [row[:2] for row in rows] == [[str(files[0]), "red"], [str(files[1]), "blue"]]
    np.testing.assert_allclose([float(row[2]) for row in rows], chances, atol=1e-4)
    told = {
        "exists; choose another path": ("adapt", pictures, "--data", own, "--out", out),
        "does not exist": ("adapt", pictures, "--data", tmp_path / "none", "--out", tmp_path / "new"),
        "either --data": ("adapt", pictures, "--out", tmp_path / "new"),
        "only the class 'red'": ("adapt", pictures, "--data", single(tmp_path / "one"), "--out", tmp_path / "new"),
        "labelled examples, for classification: give them by --data": (
            "adapt",
            pictures,
            "--env",
            "CartPole-v1",
            "--out",
            tmp_path / "new",
        ),
        "ends in .pt2 or .onnx": ("adapt", pictures, "--data", own, "--out", "new", "--export", "model.pth"),
        "red is a folder: expected the files in it": ("predict", out, own / "red"),
        "there is no file": ("predict", out, tmp_path / "none.png"),
        "does not exist: expected a model": ("predict", tmp_path / "none", files[0]),
        "a checkpoint of a run": ("predict", pictures / "checkpoint.pt", files[0]),
    }
    for text, words in told.items():
        line = refused(capsys, *words)
        assert text in line
    assert not (tmp_path / "new").exists()


def single(folder: Path) -> Path:
    (folder / "red").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "red" / "0.png")
    return folder


@pytest.fixture
def points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_points.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    algorithm = MAML(network=Network(hidden=(8,)))
    metarl.train(algorithm, PointNavigation(), settings=SETTINGS, out=tmp_path / "run")
    return tmp_path / "run"


def test_an_environment_becomes_a_policy(points: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["adapt", points, "--episodes", "2", "--out", tmp_path / "policy", "--env"]
    assert cli.main([*map(str, words), "own_points:Point", "--steps", "2", "--after", "1"]) == cli.DONE
    printed = capsys.readouterr().out
    assert printed.count("return/step_") == 3 and "1 episodes" in printed
    opened = metarl.load_model(tmp_path / "policy")
    assert opened.card.run == str(points)
    assert opened.act(torch.zeros(2)).shape == (2,)
    again = [*words[:5], tmp_path / "new", "--env"]
    assert "discrete actions of size 2" in refused(capsys, *again, "own_points:Other")
    assert "is a int: expected a gymnasium.Env" in refused(capsys, *again, "own_points:number")
    assert "no attribute 'Pont'" in refused(capsys, *again, "own_points:Pont")
    assert "NoSuchThing" in refused(capsys, *again, "NoSuchThing-v0")
    assert "is a policy" in refused(capsys, "predict", tmp_path / "policy", "a.png")


def test_wrong_numbers_and_broken_environments_are_told_in_a_line(
    points: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["adapt", points, "--episodes", "2", "--out", tmp_path / "new", "--env"]
    assert "give an environment by --env" in refused(capsys, *words[:-1], "--data", tmp_path)
    for option, least in (("--episodes", 1), ("--steps", 0), ("--after", 0), ("--horizon", 1)):
        line = refused(capsys, *words, "own_points:Point", option, least - 1)
        assert f"metarl: {option} {least - 1}: expected at least {least};" in line
    assert "wrap it (gymnasium.wrappers)" in refused(capsys, *words, "own_points:Other")
    assert cli.main([*map(str, words), "own_points:Broken"]) == cli.FAILED
    told = capsys.readouterr().err
    assert told.startswith("metarl: the environment's step 3: an observation holds numbers that are not finite: ")
    assert told.endswith("of its observation_space; --env own_points:Broken\n") and told.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_what_an_environment_raises_keeps_its_traceback(
    points: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["adapt", str(points), "--episodes", "2", "--out", str(tmp_path / "new"), "--env", "own_points:Raising"]
    assert cli.main(words) == cli.FAILED
    told = capsys.readouterr().err
    assert "the cable is loose" in told and "own_points.py" in told
