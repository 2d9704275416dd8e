"""Export meta-learnt policies as Stable-Baselines3 models, and start meta-training from the actors of such models."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.save_util import load_from_zip_file
from torch import Generator, Tensor, nn

from metarl import objectives
from metarl.control import ControlFamily
from metarl.files import expanded
from metarl.networks import ACTIVATIONS, MINIMUM_STD, Layout, Network
from metarl.sb3.environments import TaskVecEnv
from metarl.sb3.policies import state_of
from metarl.seeding import stream
from metarl.trained import Trained
from metarl.types import Algorithm, Params, Spec, State, Tasks

TOLERANCE = 1e-3
"""Allowed difference in log-probabilities of an exported policy: small standard deviations magnify rounding errors."""


class Actor(NamedTuple):
    """A policy as a multilayer perceptron, the form that metarl and Stable-Baselines3 share."""

    activation: str
    layers: list[Tensor]
    """Weight, bias, weight, bias, ... from the input to the head."""
    log_std: Tensor | None


def to_ppo(trained: Trained, task: Tasks | None = None, steps: int = 0, seed: int = 0, **options: Any) -> PPO:
    """Return a run's policy as a PPO model, after ``steps`` adaptation steps to a task.

    The model's actor is the policy, to float precision. Its critic has the actor's widths and is untrained. The model
    can be saved, loaded and trained further with Stable-Baselines3 alone. ``seed`` determines the episodes of
    adaptation and the critic. ``options`` are passed on to PPO.

    Raises:
        ValueError: the policy is not a plain multilayer perceptron, or for the reasons of ``metarl.sb3.policy``.
    """
    state, spec = state_of(trained, task, steps, seed), trained.learner.spec
    layout = _layout(trained.algorithm, spec)
    params = _find(state, layout)
    if params is None:
        raise ValueError(f"{type(trained.algorithm).__name__} adapts no network of its own, so it cannot be exported")
    layers, log_std = layout.split({name: value[0].detach().cpu() for name, value in params.items()})
    actor = Actor(layout.activation, layers, log_std[0] if log_std else None)
    family: Any = trained.family
    with torch.random.fork_rng(devices=[]):  # SB3 initialises the critic from the global generator
        torch.default_generator.manual_seed(stream(seed, "critic").initial_seed())
        model = _model(actor, family, options)
    _check(model, trained, state)
    return model


def saved(model: BaseAlgorithm) -> bytes:
    """Return a model as bytes, the contents of the file that its ``load`` reads."""
    buffer = io.BytesIO()
    model.save(buffer)
    return buffer.getvalue()


def import_actor(model: BaseAlgorithm | Path | str, algorithm: Algorithm, family: ControlFamily) -> Params:
    """Return the actor of a PPO or A2C model, or of its file, as meta-parameters for ``train(start=...)``.

    Raises:
        ValueError: it is not such a model, or its network differs from the algorithm's. The message says how.
    """
    actor, spec = _read(model), family.spec
    layout = _layout(algorithm, spec)
    drawn = algorithm.build(spec).init(Generator().manual_seed(0))
    names = [*layout.layers, *([layout.log_std] if layout.log_std else [])]
    values = [*actor.layers, *([] if actor.log_std is None else [actor.log_std])]
    theirs = [tuple(value.shape) for value in values]
    ours = [tuple(drawn[name].shape) for name in names]
    if theirs != ours:
        raise ValueError(
            f"the model's actor has parameters of shapes {theirs} where {type(algorithm).__name__} has {ours}; "
            "--algorithm.hidden gives the widths"
        )
    if actor.activation != layout.activation and len(actor.layers) > 2:
        raise ValueError(
            f"the model's activation is {actor.activation} where {type(algorithm).__name__} has {layout.activation}; "
            f"--algorithm.activation {actor.activation} changes that"
        )
    return {name: value.to(drawn[name].dtype) for name, value in zip(names, values, strict=True)}


def _layout(algorithm: Algorithm, spec: Spec) -> Layout:
    network = getattr(algorithm, "network", None)
    layout = network.build(spec).layout if isinstance(network, Network) else None
    if layout is None:
        raise ValueError(
            f"the network of {type(algorithm).__name__} is no plain multilayer perceptron (linear layers with one "
            "activation between them, no batch norm), and Stable-Baselines3's MlpPolicy can be nothing else"
        )
    return layout


def _find(state: State, layout: Layout) -> Params | None:
    """Return the first network ``[task, *shape]`` in a learner's state; None if there is none."""
    if isinstance(state, dict):
        return state if set(layout.layers) <= set(state) else None
    parts = state if isinstance(state, tuple) else ()
    return next((network for part in parts if (network := _find(part, layout)) is not None), None)


def _model(actor: Actor, family: ControlFamily, options: dict[str, Any]) -> PPO:
    widths = [len(bias) for bias in actor.layers[1:-1:2]]
    network = {"net_arch": {"pi": widths, "vf": widths}, "activation_fn": type(ACTIVATIONS[actor.activation]())}
    options = {"device": "cpu", **options, "policy_kwargs": network}
    model = PPO("MlpPolicy", TaskVecEnv(family, num_envs=1), **options)
    values = dict(zip(_names(len(actor.layers) // 2), actor.layers, strict=True))
    if actor.log_std is not None:
        values["log_std"] = actor.log_std.clamp_min(torch.tensor(MINIMUM_STD).log())
    expected = model.policy.state_dict()
    differ = [name for name, value in values.items() if value.shape != expected[name].shape]
    if differ:
        raise ValueError(
            f"the policy reads more than observations: {differ[0]} has shape {tuple(values[differ[0]].shape)} where "
            f"Stable-Baselines3 has {tuple(expected[differ[0]].shape)}, so it cannot be exported"
        )
    model.policy.load_state_dict(expected | values)
    return model


def _names(depth: int) -> list[str]:
    """Return the names in SB3's ActorCriticPolicy of the parameters of an actor with ``depth`` linear layers."""
    layers = [f"mlp_extractor.policy_net.{2 * index}" for index in range(depth - 1)] + ["action_net"]
    return [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


def _check(model: PPO, trained: Trained, state: State) -> None:
    """Raise ValueError unless both policies give the same log-probabilities for random observations."""
    spec, generator = trained.learner.spec, Generator().manual_seed(0)
    observations = torch.randn(64, *spec.input_shape, generator=generator)
    assert isinstance(model.policy, ActorCriticPolicy)
    with torch.no_grad():
        outputs = trained.learner.predict(state, observations.to(trained.device).unsqueeze(0))[0][0].cpu()
        actions = objectives.sample(spec.kind, outputs, generator)
        theirs = model.policy.get_distribution(observations.to(model.device)).log_prob(actions.to(model.device))
    difference = (objectives.log_prob(spec.kind, outputs, actions) - theirs.cpu()).abs().max()
    if not difference < TOLERANCE:
        raise ValueError(
            f"log-probabilities of the exported policy differ by {difference:.2g}: the network of "
            f"{type(trained.algorithm).__name__} is more than its linear layers tell"
        )


def _read(model: BaseAlgorithm | Path | str) -> Actor:
    """Read the actor of a model, or of its file. Raises ValueError if there is no actor of a known form."""
    if isinstance(model, BaseAlgorithm):
        options, values = model.policy_kwargs, model.policy.state_dict()
    else:
        options, values = _opened(expanded(model))
    if "action_net.weight" not in values or any(name.startswith("features_extractor.") for name in values):
        raise ValueError(
            f"{model if isinstance(model, str | Path) else type(model).__name__} has no actor that can be read: "
            "expected a PPO or A2C model with an MlpPolicy"
        )
    kinds = {type(make()): name for name, make in ACTIVATIONS.items()}
    activation = options.get("activation_fn", nn.Tanh)
    if activation not in kinds:
        raise ValueError(f"the model's activation is {activation.__name__}: expected tanh or relu")
    depth = 1 + sum(name.startswith("mlp_extractor.policy_net.") for name in values) // 2
    return Actor(kinds[activation], [values[name].cpu() for name in _names(depth)], values.get("log_std"))


def _opened(path: Path) -> tuple[dict[str, Any], Params]:
    if not path.exists():  # load_from_zip_file would try other names, such as PATH.zip
        raise ValueError(f"{path} does not exist: expected a model of Stable-Baselines3")
    try:
        data, params, _ = load_from_zip_file(path, device="cpu")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a model of Stable-Baselines3: {error}") from error
    weights: Any = (params or {}).get("policy", {})
    return (data or {}).get("policy_kwargs", {}), weights
