"""Programs that need no metarl: ``torch.export`` (.pt2) and ONNX (.onnx), with everything that scales inside."""

import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metarl.files import check_place, expanded, write_bytes
from metarl.speed import on_leaves
from metarl.trained.deploy import card
from metarl.trained.deploy.native import Native
from metarl.types import AS_GIVEN, Learner, State, Units, outputs_at

TOLERANCE = 1e-4
"""Allowed difference between a program and the model, relative to the largest output."""
ENDINGS = (".pt2", ".onnx")


class Predictor(nn.Module):
    """A few-shot model: inputs ``[item, *input_shape]`` to probabilities or values."""

    def __init__(self, learner: Learner, state: State, divisor: float, classes: int, units: Units = AS_GIVEN) -> None:
        super().__init__()
        self.learner, self.state, self.divisor, self.classes = learner, _on_cpu(state), divisor, classes
        self.units = units

    def forward(self, inputs: Tensor) -> Tensor:
        """Predict."""
        rows = inputs.to(torch.get_default_dtype())
        if self.divisor != 1:
            rows = rows / self.divisor
        if self.units.inputs is not None:
            rows = self.units.inputs.apply(rows)
        outputs = outputs_at(self.learner, self.state, rows)
        if self.classes:
            return outputs[:, : self.classes].softmax(-1)
        return outputs if self.units.targets is None else self.units.targets.undo(outputs)


class Actor(nn.Module):
    """An adapted policy: an environment's own observations ``[item, ...]`` to the actions it takes without noise."""

    def __init__(self, learner: Learner, state: State, own: Native) -> None:
        super().__init__()
        self.learner, self.state, self.own = learner, _on_cpu(state), own

    def forward(self, observations: Tensor) -> Tensor:
        """Act."""
        outputs = outputs_at(self.learner, self.state, self.own.seen(observations))
        return self.own.act(self.learner.spec.distribution.mode(outputs))


def _on_cpu(state: State) -> State:
    return on_leaves(lambda leaf: leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf, state)


def export(program: nn.Module, given: Tensor, path: Path | str, made: card.Card, details: Mapping[str, Any]) -> Path:
    """Write a program, compared with the module, and its card beside it. The first axis of its input is free.

    ``given`` ``[item, ...]``, two items at least, is what it is compared at.

    Raises:
        ValueError: another ending than .pt2 and .onnx, ONNX is not installed, the module cannot be exported, or the
            program's outputs differ.
    """
    path = expanded(path)
    check_place(path)
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path}: expected a file that ends in {' or '.join(ENDINGS)}")
    if len(given) < 2:
        given = torch.cat([given, given])
    program = program.eval()
    twice = torch.cat([given, given])
    with torch.no_grad():
        expected = [program(one) for one in (given, twice)]
        contents, run = (_torch if path.suffix == ".pt2" else _onnx)(program, given)
        for one, wanted in zip((given, twice), expected, strict=True):
            _check_same(run(one), wanted)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, contents)
    shape = ["item", *given.shape[1:]]
    told = {"format": path.suffix, "input_shape": shape, "input_dtype": str(given.dtype).removeprefix("torch.")}
    card.write(made, path, told | dict(details))
    return path


def _check_same(found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape:
        raise ValueError(f"the exported program returns {tuple(found.shape)} instead of {tuple(expected.shape)}")
    most = expected.abs().max().clamp_min(1)
    if not (found.to(expected.dtype) - expected).abs().max() <= TOLERANCE * most:
        raise ValueError("the exported program gives other outputs than the model, so nothing was written")


Run = Callable[[Tensor], Tensor]


def _torch(program: nn.Module, given: Tensor) -> tuple[bytes, Run]:
    try:
        with warnings.catch_warnings(action="ignore"):
            exported = torch.export.export(program, (given,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
            buffer = io.BytesIO()
            torch.export.save(exported, buffer)
            buffer.seek(0)
            run: Run = torch.export.load(buffer).module()
    except Exception as error:  # torch's exporter raises many kinds
        raise ValueError(f"this learner cannot be exported by torch.export: {_line(error)}") from error
    return buffer.getvalue(), run


def _onnx(program: nn.Module, given: Tensor) -> tuple[bytes, Run]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise ValueError(
            f"ONNX needs {error.name}, which is not installed: pip install 'metarl-toolkit[onnx]'"
        ) from None
    log = logging.getLogger("torch.onnx")  # it warns of packages that are not needed
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), tempfile.TemporaryDirectory() as folder:
            exported = torch.onnx.export(
                program, (given,), dynamo=True, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), verbose=False,
                input_names=["inputs"], output_names=["outputs"],
            )  # fmt: skip
            file = Path(folder) / "program.onnx"
            assert exported is not None
            exported.save(str(file), external_data=False)
            contents = file.read_bytes()
        session = onnxruntime.InferenceSession(contents, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValueError(f"this learner cannot be exported to ONNX: {_line(error)}") from error
    finally:
        log.setLevel(level)
    name = session.get_inputs()[0].name
    return contents, lambda rows: torch.from_numpy(session.run(None, {name: rows.numpy()})[0])


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
