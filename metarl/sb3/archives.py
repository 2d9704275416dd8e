"""Model files of Stable-Baselines3, read without running what is pickled in them.

Such a file is a zip archive. Its member ``data`` is JSON: objects are there both pickled (``:serialized:``) and, field
by field, as text. Only the text is read. Parameters are read by ``torch.load(weights_only=True)``.
"""

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from metarl.files import check_regular
from metarl.types import Params

LARGEST = {"data": 2**26, "policy.pth": 2**32}
"""Bytes of the members that are read."""
_NUMBER = r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|\.\d+|inf|nan)"


class Archive(NamedTuple):
    """What a model file tells of an actor."""

    activation: str | None
    """The name of the activation's class; None where the policy's default is used."""
    params: Params
    sees: Any
    """Space of observations; the name of its class where that is no Box and no Discrete."""
    acts: Any


def read_archive(path: Path) -> Archive:
    """Read a model file. Raises ValueError, with one line, for anything else."""
    if not path.exists():
        raise ValueError(f"{path} does not exist: expected a model of Stable-Baselines3")
    try:
        check_regular(path)
        with zipfile.ZipFile(path) as archive:
            params = _params(_member(archive, "policy.pth"))
            data = json.loads(_member(archive, "data") or "{}")
        if not isinstance(data, dict):
            raise ValueError("its data is no object")
        kinds = data.get("policy_kwargs")
        activation = kinds.get("activation_fn") if isinstance(kinds, dict) else None
        sees, acts = _space(data.get("observation_space")), _space(data.get("action_space"))
    except Exception as error:  # damaged bytes make zipfile, json and torch raise nearly anything
        told = " ".join(f"{type(error).__name__}: {error}".split())
        told = told.partition(" In PyTorch 2.6")[0].partition(" Please file an issue")[0][:300]
        raise ValueError(f"{path} cannot be read as a model of Stable-Baselines3: {told}") from error
    return Archive(None if activation is None else _class_name(activation), params, sees, acts)


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a member; empty if there is none. Raises ValueError for one that is too large to be a model's."""
    if name not in archive.namelist():
        return b""
    size = archive.getinfo(name).file_size
    if size > LARGEST[name]:
        raise ValueError(f"its {name} has {size} bytes, more than {LARGEST[name]}")
    return archive.read(name)


def _params(contents: bytes) -> Params:
    found = torch.load(io.BytesIO(contents), map_location="cpu", weights_only=True) if contents else {}
    if not (isinstance(found, dict) and all(isinstance(value, Tensor) for value in found.values())):
        raise ValueError("its policy.pth holds no parameters by name")
    return dict(found)


def _class_name(told: Any) -> str:
    """Return the name of a class from its text, such as ``<class 'torch.nn.modules.activation.ReLU'>``."""
    return str(told).removeprefix("<class '").removesuffix("'>").rpartition(".")[2]


def _space(told: Any) -> Any:
    """Rebuild a space from its fields; other spaces by their names, None for none. Raises ValueError."""
    if not isinstance(told, dict):
        return None
    kind = _class_name(told.get(":type:"))
    if kind == "Discrete":
        return spaces.Discrete(int(told["n"]), start=int(told.get("start", 0)))
    if kind != "Box":
        return kind
    shape, dtype = tuple(map(int, told["_shape"])), np.dtype(str(told["dtype"]))
    low, high = (_bounds(told, end, shape).astype(dtype) for end in ("low", "high"))
    return spaces.Box(low, high, dtype=dtype.type)


def _bounds(told: dict[str, Any], end: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return one end of a Box. Its text has all numbers, or leaves some out of many, unless all are the same."""
    text = next((one for one in (told.get(f"{end}_repr"), told.get(end)) if isinstance(one, str)), "")
    if re.fullmatch(_NUMBER, text):
        return np.full(shape, float(text))
    numbers = [float(number) for number in re.findall(_NUMBER, text)]
    if "..." in text and len(set(numbers)) == 1:
        return np.full(shape, numbers[0])
    if "..." in text or len(numbers) != int(np.prod(shape)):
        raise ValueError(
            f"the file tells only some of the bounds of a Box of shape {shape}: load the model with "
            "Stable-Baselines3, if you trust it, and pass the model instead of the file"
        )
    return np.array(numbers).reshape(shape)
