"""Model files: tensors and one JSON text, with a hash of all bytes, and no code.

A file holds the meta-parameters, and the examples or episodes that the model was adapted to: adapting again rebuilds
the state, of whatever form. Its outputs at some inputs are in the file, too, and must come out again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarl import plugins, runs, safety
from metarl.files import check_place, expanded
from metarl.seeding import stream
from metarl.trained.deploy import card
from metarl.types import Algorithm, Family, Learner, Params, Part, ReadsFiles, Spec, Targets, holding

FORMAT = 1
FEW_SHOT, POLICY = "few-shot", "policy"
GROUPS: dict[str, plugins.Group] = {"algorithm": "algorithms", "reader": "tasks"}
TOLERANCE = 1e-3
"""Relative difference of outputs that another machine or device may make."""


class Told(NamedTuple):
    """What a model file tells beside its tensors."""

    algorithm: Algorithm
    spec: Spec
    card: card.Card
    contents: Mapping[str, Any]
    shown: Mapping[str, Any] = MappingProxyType({})
    """What the card shows besides."""


def reader(family: Family | None) -> dict[str, Any] | None:
    """Return the record of a family that reads files; None where it reads none, or cannot be recorded."""
    if not isinstance(family, ReadsFiles):
        return None
    try:
        return runs.describe(family)
    except ValueError:
        return None


def save(
    path: Path | str, told: Told, params: Params, buffers: Params, learnt_from: Mapping[str, Tensor], outputs: Tensor
) -> Path:
    """Write a model file, and its card beside it. Raises ValueError where the algorithm cannot be recorded."""
    path = expanded(path)
    check_place(path)
    spec = {name: value for name, value in vars(told.spec).items() if name != "policy"}
    record = {
        "model": FORMAT,
        "algorithm": runs.describe(told.algorithm),
        "spec": spec,
        "card": told.card.record(),
        **told.contents,
    }
    text = json.dumps(safety.signed(json.loads(json.dumps(record))))
    groups = {"params": params, "buffers": buffers, "learnt_from": learnt_from}
    held = {name: {key: _plain(one) for key, one in values.items()} for name, values in groups.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.save_checkpoint(path, {"model": text, "outputs": _plain(outputs), **held})
    details = {"kind": told.contents["kind"], "input_shape": list(told.spec.input_shape), **told.shown}
    card.write(told.card, path, details)
    return path


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


class Read(NamedTuple):
    """A model file's contents, checked."""

    told: Told
    learner: Learner
    params: Params
    learnt_from: dict[str, Tensor]
    outputs: Tensor
    record: Mapping[str, Any]


def read(path: Path, device: torch.device, allow_code: bool) -> Read:
    """Read a model file.

    Raises:
        RunError: it is missing, damaged, of another version or no model file; it names code that is not allowed; or it
            holds parameters of another network, or numbers that are not finite.
        PluginError: its algorithm is not installed.
    """
    if not path.exists():
        raise runs.RunError(f"{path} does not exist: expected a model file, as model.save writes it")
    contents = runs.load_checkpoint(path)
    if not isinstance(contents.get("model"), str):
        hint = " (metarl.open_run opens its folder)" if "params" in contents else ""
        raise runs.RunError(f"{path} is no model file, but a checkpoint of a run{hint}")
    record = _record(path, contents)
    try:
        safety.check_code(path, record, GROUPS, allow_code)
    except safety.UnknownCode as error:
        raise runs.RunError(str(error)) from None
    for name in ("params", "buffers", "learnt_from"):
        _check_finite(path, contents[name])
    spec = _spec(path, record["spec"])
    algorithm = runs.rebuild(record["algorithm"], "algorithms")
    learner = algorithm.build(spec)
    params = {name: value.to(device) for name, value in contents["params"].items()}
    buffers = {name: value.to(device) for name, value in contents["buffers"].items()}
    runs.check_architecture(learner.init(stream(0, "initialisation")), contents["params"], path)
    if learner.buffers is not None:
        runs.check_architecture(learner.buffers.init(), contents["buffers"], path)
    made = card.Card(**record["card"])
    told = Told(algorithm, spec, made, record)
    return Read(told, holding(learner, buffers or None), params, contents["learnt_from"], contents["outputs"], record)


def check_outputs(path: Path, before: Tensor, now: Tensor) -> None:
    """Raise RunError where a model that was read gives other outputs than when it was saved."""
    # Relative to all of them: a logit near 0 among large ones may change by their rounding.
    most = before.abs().max().clamp_min(1)
    if before.shape != now.shape or not (before - now).abs().max() <= TOLERANCE * most:
        raise runs.RunError(
            f"{path} gives other outputs than when it was saved: its algorithm has changed since (its card tells the "
            "versions); use those versions, or adapt anew"
        )


def _record(path: Path, contents: Mapping[str, Any]) -> dict[str, Any]:
    try:
        record = json.loads(contents["model"])
        if record["model"] != FORMAT:
            raise runs.RunError(f"{path} has format {record['model']}; this version reads {FORMAT}")
        if record["kind"] not in (FEW_SHOT, POLICY):
            raise ValueError(f"its kind is {record['kind']!r}")
        for name in ("params", "buffers", "learnt_from"):
            if not all(isinstance(value, Tensor) for value in contents[name].values()):
                raise ValueError(f"{name} are no tensors")
        if not isinstance(contents["outputs"], Tensor):
            raise ValueError("outputs are no tensor")
    except runs.RunError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise runs.RunError(f"{path} is damaged, or no model file: {type(error).__name__}: {error}") from error
    return dict(record)


def _spec(path: Path, told: Mapping[str, Any]) -> Spec:
    try:
        parts = tuple(
            Part(tuple(path_), tuple(shape), dtype, offset, size, tuple(choices), tuple(first), *rest)
            for path_, shape, dtype, offset, size, choices, first, *rest in told["observations"]
        )
        shapes = {name: tuple(told[name]) for name in ("input_shape", "choices", "bounds")}
        targets = tuple(Targets(*one) for one in told.get("targets", ()))  # none in files of before
        return Spec(**{**told, **shapes, "observations": parts, "targets": targets})
    except (TypeError, ValueError, KeyError) as error:
        raise runs.RunError(f"{path} is damaged: its spec cannot be read: {error}") from error


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise runs.RunError(f"{path} has numbers that are not finite in {name}")
