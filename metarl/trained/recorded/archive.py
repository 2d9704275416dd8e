"""Episodes as one ``.npz`` file of plain arrays, which NumPy alone can read.

Steps of all episodes stand one after another, episode after episode: ``length`` tells them apart. Observations have one
row more for each episode, the one after its last step. ``about`` is a JSON text: the format, the family, the spaces,
and where the parts of Dict and Tuple observations are. Nothing is pickled.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metarl.environments import composite, parts_of
from metarl.files import check_place, check_regular, expanded, write_bytes
from metarl.trained.deploy.playing import Episode
from metarl.trained.recorded.episodes import Played, Recording, places_by_step

FORMAT = 1
BY_EPISODE = ("task", "step", "number", "length", "deterministic")
BY_STEP = ("actions", "rewards", "terminations", "truncations", "log_probs", "policy_actions")
OBSERVATIONS = "observations"
Array = np.ndarray[Any, Any]


def write(path: Path, recorded: Recording) -> Path:
    """Write the episodes of an evaluation into a file, whole or not at all; what it held before is replaced."""
    check_place(path)
    paths = _paths(recorded.observation_space)
    about = {
        "format": FORMAT,
        "family": type(recorded.family).__name__,
        "observation_space": _line(recorded.observation_space),
        "action_space": _line(recorded.action_space),
        "observations": [list(one) for one in paths],
    }
    episodes = recorded.episodes
    arrays: dict[str, Array] = {"about": np.array(json.dumps(about))}
    for name in BY_EPISODE:
        arrays[name] = np.array([_of_episode(one, name) for one in episodes])
    if all(one.success is not None for one in episodes):
        arrays["success"] = np.array([one.success for one in episodes], dtype=np.float32)
    arrays |= {f"parameters/{name}": values for name, values in recorded.parameters.items()}
    for one in paths:
        arrays[_name(one)] = np.concatenate([_part(played.episode.observations, one) for played in episodes])
    for name in BY_STEP:
        arrays[name] = np.concatenate([_of_steps(played, name) for played in episodes])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getbuffer())
    return path


def read(path: Path | str, task: int | None, deterministic: bool) -> list[list[Episode]]:
    """Return the episodes of one task, a list for each adaptation step; see ``load_episodes``."""
    path = expanded(path)
    arrays = _arrays(path)
    try:
        return _read(arrays, task, deterministic)
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path} holds no saved episodes, or is damaged: {type(error).__name__}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _arrays(path: Path) -> dict[str, Array]:
    if not path.exists():
        raise ValueError(f"{path} does not exist: expected a file of saved episodes (.npz)")
    check_regular(path)
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as saved episodes (.npz): {error or type(error).__name__}") from error


def _read(arrays: Mapping[str, Array], task: int | None, deterministic: bool) -> list[list[Episode]]:
    about = json.loads(str(arrays["about"]))
    if about["format"] != FORMAT:
        raise ValueError(f"it has format {about['format']}; this version reads {FORMAT}")
    lengths = arrays["length"]
    for name in (*BY_STEP, *(_name(one) for one in about["observations"])):
        expected = int(lengths.sum()) + (len(lengths) if name.startswith(OBSERVATIONS) else 0)
        if len(arrays[name]) != expected:
            raise ValueError(f"{name} has {len(arrays[name])} rows where the lengths ask for {expected}")
    keys = zip(*(arrays[name].tolist() for name in ("task", "step", "deterministic")), strict=True)
    return [[*_episodes(arrays, about, places)] for places in places_by_step(keys, task, deterministic)]


def _episodes(arrays: Mapping[str, Array], about: Mapping[str, Any], chosen: Sequence[int]) -> Iterator[Episode]:
    ends = np.cumsum(arrays["length"])
    for place in chosen:
        last = int(ends[place])
        first = last - int(arrays["length"][place])
        steps = {name: arrays[name][first:last] for name in BY_STEP}
        seen = _nested([(one, arrays[_name(one)][first + place : last + place + 1]) for one in about["observations"]])
        known = steps["log_probs"] if np.isfinite(steps["log_probs"]).all() else None
        yield Episode(seen, steps["actions"], steps["rewards"], steps["terminations"], known, steps["policy_actions"])


def _paths(space: Any) -> list[tuple[str | int, ...]]:
    return [part.path for part in parts_of(space)] if composite(space) else [()]


def _name(path: Sequence[str | int]) -> str:
    return "/".join(map(str, (OBSERVATIONS, *path)))


def _part(observations: Any, path: tuple[str | int, ...]) -> Array:
    for key in path:
        observations = observations[key]
    return np.asarray(observations)


def _nested(parts: Sequence[tuple[Sequence[str | int], Array]]) -> Any:
    """Put arrays together again, by their paths: names lead into dicts, numbers into tuples."""
    if len(parts) == 1 and not parts[0][0]:
        return parts[0][1]
    groups: dict[str | int, list[tuple[Sequence[str | int], Array]]] = {}
    for path, array in parts:
        groups.setdefault(path[0], []).append((path[1:], array))
    nested = {key: _nested(inside) for key, inside in groups.items()}
    return tuple(nested.values()) if all(isinstance(key, int) for key in nested) else nested


def _of_episode(played: Played, name: str) -> Any:
    return len(played.episode.rewards) if name == "length" else getattr(played, name)


def _of_steps(played: Played, name: str) -> Array:
    if name == "truncations":
        return played.truncated
    return np.asarray(getattr(played.episode, "terminated" if name == "terminations" else name))


def _line(space: Any) -> str:
    return " ".join(str(space).split())
