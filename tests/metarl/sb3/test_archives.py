"""Model files of strangers: their parameters are read, and nothing that is pickled in them runs."""

import base64
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.save_util import data_to_json

from metarl import sb3
from metarl.sb3 import archives
from metarl.sb3.archives import read_archive
from metarl_envs.bandit import Bandit


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.fixture(scope="module")
def model() -> bytes:
    return sb3.saved(PPO("MlpPolicy", sb3.TaskVecEnv(Bandit(), 1), policy_kwargs={"net_arch": [4]}, device="cpu"))


def rewritten(model: bytes, path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(io.BytesIO(model)) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, members.get(name.replace(".", "_"), old.read(name)))
    return path


def test_no_pickled_field_runs(model: bytes, tmp_path: Path) -> None:
    """Whichever it is: all of them are changed."""
    with zipfile.ZipFile(io.BytesIO(model)) as archive:
        data = json.loads(archive.read("data"))
    bomb = base64.b64encode(pickle.dumps(Bomb(tmp_path / "ran"))).decode()
    fields = [value for value in data.values() if isinstance(value, dict) and ":serialized:" in value]
    assert len(fields) > 5
    for value in fields:
        value[":serialized:"] = bomb
    data["extra"] = {":type:": "<class 'x'>", ":serialized:": bomb}
    path = rewritten(model, tmp_path / "model.zip", data=json.dumps(data).encode())
    assert read_archive(path).params.keys() == read_archive(rewritten(model, tmp_path / "own.zip")).params.keys()
    assert not (tmp_path / "ran").exists()
    with pytest.raises(Exception, match=r"."):  # else nothing was tried
        PPO.load(path, device="cpu")
    assert (tmp_path / "ran").exists()


def test_pickles_in_the_place_of_parameters_are_refused_in_a_line(model: bytes, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": Bomb(tmp_path / "ran")}, buffer)
    plain = pickle.dumps(Bomb(tmp_path / "ran"))
    for number, contents in enumerate((buffer.getvalue(), plain, b"", b"junk", b"PK\x05\x06" + bytes(18))):
        path = rewritten(model, tmp_path / f"{number}.zip", policy_pth=contents)
        with pytest.raises(ValueError, match=r"model|actor") as refused:
            sb3.import_actor(path, Bandit(), Bandit())  # type: ignore[arg-type]
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 500
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (3,)),
        spaces.Box(np.array([-np.inf, -4.8, 1e-7]), np.array([np.inf, 4.8, 3e5]), dtype=np.float64),
        spaces.Box(0, 255, (40, 40, 3), dtype=np.uint8),
        spaces.Box(-np.inf, np.inf, (2000,)),
        spaces.Box(-3, 3, ()),
        spaces.Discrete(4),
        spaces.Discrete(3, start=-1),
    ],
    ids=str,
)
def test_spaces_are_read_from_their_text(space: Any) -> None:
    told = json.loads(data_to_json({"space": space}))["space"]
    del told[":serialized:"]
    found = archives._space(told)
    if isinstance(space, spaces.Box):
        np.testing.assert_allclose(found.low, space.low, rtol=1e-6)
        np.testing.assert_allclose(found.high, space.high, rtol=1e-6)
        assert (found.shape, found.dtype) == (space.shape, space.dtype)
    else:
        assert found == space


def test_bounds_that_the_text_leaves_out_are_not_guessed() -> None:
    told = json.loads(
        data_to_json({"space": spaces.Box(np.arange(2000, dtype=np.float32), np.arange(1, 2001, dtype=np.float32))})
    )["space"]
    with pytest.raises(ValueError, match=r"only some of the bounds .* pass the model instead"):
        archives._space(told)


def test_what_is_no_file_or_too_large_is_refused(model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(ValueError, match="is a pipe"):
        read_archive(tmp_path / "pipe.zip")
    monkeypatch.setitem(archives.LARGEST, "policy.pth", 100)
    with pytest.raises(ValueError, match=r"its policy.pth has \d+ bytes, more than 100"):
        read_archive(rewritten(model, tmp_path / "model.zip"))
