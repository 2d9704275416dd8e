"""Open a model file, of whatever kind."""

import contextlib
from pathlib import Path
from typing import Any

import torch

from metarl import origins, plugins, runs
from metarl.files import expanded
from metarl.speed import Device, resolve_device
from metarl.trained.deploy import labels, saved
from metarl.trained.deploy.fewshot import FewShotModel
from metarl.trained.deploy.inputs import Preparing
from metarl.trained.deploy.policy import AdaptedPolicy, as_native, as_tensors, replayed
from metarl.types import Examples, InputScale


def load_model(path: Path | str, device: Device = "cpu", allow_code: bool = False) -> FewShotModel | AdaptedPolicy:
    """Open a file that a model's ``save`` wrote: data only, of which nothing is run.

    An algorithm outside of installed plugins is imported if this user saved the model here, or with ``allow_code``.

    Raises:
        RunError: the file is missing, damaged, cut off or no model; it names code that is not allowed; it holds numbers
            that are not finite; or its algorithm gives other outputs now.
        PluginError: its algorithm is not installed.
        ValueError: the device cannot be had.
    """
    path = expanded(path)
    where = resolve_device(device)
    found = saved.read(path, where, allow_code)
    try:
        opened = (_few_shot if found.record["kind"] == saved.FEW_SHOT else _policy)(path, found, where)
    except runs.RunError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise runs.RunError(f"{path} is damaged: its model cannot be rebuilt ({told})") from error
    return opened


def _few_shot(path: Path, found: saved.Read, device: torch.device) -> FewShotModel:
    record, spec = found.record, found.told.spec
    scale = None if record["scale"] is None else InputScale(*record["scale"])
    family: Any = None
    if record["reader"] is not None:
        with contextlib.suppress(plugins.PluginError):  # without it, the model predicts from arrays alone, and says so
            family = runs.rebuild(record["reader"], "tasks")
    preparing = Preparing(tuple(spec.input_shape), scale, family, origins.units_of(record))
    algorithm, card = found.told.algorithm, found.told.card
    options = record["steps"], record["seed"]
    model = FewShotModel(algorithm, found.learner, found.params, device, preparing, card, *options)
    support = Examples(inputs=found.learnt_from["inputs"], targets=found.learnt_from["targets"])
    model.restore(support, tuple(map(labels.read, record["classes"])))
    saved.check_outputs(path, found.outputs, model.outputs(support.inputs[0]))
    return model


def _policy(path: Path, found: saved.Read, device: torch.device) -> AdaptedPolicy:
    record = found.record
    rollouts, state = replayed(found.learner, found.params, device, found.learnt_from, record["steps"])
    parts = found.told.algorithm, found.learner, found.params, device, as_native(record["native"]), found.told.card
    policy = AdaptedPolicy(*parts, state, rollouts, as_tensors(record["returns"]))
    saved.check_outputs(path, found.outputs, policy._outputs(policy._probes()))
    return policy
