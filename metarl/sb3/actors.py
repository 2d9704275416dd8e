"""Export meta-learnt policies as Stable-Baselines3 models, and start meta-training from the actors of such models."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Generator, Tensor, nn

from metarl.algorithms import Normalised
from metarl.control import ControlFamily
from metarl.environments import composite
from metarl.files import expanded
from metarl.networks import ACTIVATIONS, MINIMUM_STD, Layout, Network
from metarl.sb3.archives import Archive, read_archive
from metarl.sb3.environments import TaskVecEnv
from metarl.sb3.native import Native, acting_natively, choosing_natively, native, reading_native, to_native
from metarl.sb3.shifted import ShiftedPolicy
from metarl.seeding import stream
from metarl.trained import Trained
from metarl.types import Algorithm, Params, Spec, State, Tasks, outputs_at

TOLERANCE = 1e-3
"""Allowed difference in log-probabilities of an exported policy: small standard deviations magnify rounding errors."""


class Actor(NamedTuple):
    """A policy as a multilayer perceptron, the form that metarl and Stable-Baselines3 share."""

    activation: str
    layers: list[Tensor]
    """Weight, bias, weight, bias, ... from the input to the head."""
    log_std: Tensor | None
    sees: spaces.Space[Any] | None = None
    """The observations that a model reads."""
    acts: spaces.Space[Any] | None = None
    """The actions that a model takes."""


def to_ppo(trained: Trained, task: Tasks | None = None, steps: int = 0, seed: int = 0, **options: Any) -> PPO:
    """Return a run's policy as a PPO model, after ``steps`` adaptation steps to a task.

    The model's actor is the policy, to float precision, in the environment's own spaces: for a ``GymnasiumFamily``, its
    actions have the environment's bounds. Its critic has the actor's widths and is untrained. The model can be saved,
    loaded and trained further with Stable-Baselines3 alone. ``seed`` determines the episodes of adaptation and the
    critic. ``options`` are passed on to PPO.

    Raises:
        ValueError: the policy is not a plain multilayer perceptron; the environment's spaces depend on the task, and no
            task is given; or for the reasons of ``metarl.sb3.policy``.
    """
    state, spec = trained.state(task, steps, seed), trained.learner.spec
    _refuse_bounded(spec)
    layout = _layout(trained.algorithm, spec)
    params = _find(state, layout)
    if params is None:
        raise ValueError(f"{type(trained.algorithm).__name__} adapts no network of its own, so it cannot be exported")
    layers, log_std = layout.split({name: value[0].detach().cpu() for name, value in params.items()})
    if isinstance(state, Normalised):
        layers = _reading_plainly(layers, state)
    actor = Actor(layout.activation, layers, log_std[0] if log_std else None)
    family: Any = trained.family
    own = native(family, task)
    _refuse_spaces(own)
    with torch.random.fork_rng(devices=[]):  # SB3 initialises the critic from the global generator
        torch.default_generator.manual_seed(stream(seed, "critic").initial_seed())
        model = _model(actor, _environment(family, task, own), own, options)
    _check(model, trained, state, own)
    return model


def _refuse_bounded(spec: Spec) -> None:
    if spec.distribution.bounded:
        raise ValueError(
            f"Stable-Baselines3's PPO has no {spec.distribution.name} policies, only Gaussians whose actions are "
            "clipped; use metarl.sb3.policy, whose predict works with its tools"
        )


def _refuse_spaces(own: Native | None) -> None:
    refusal = None if own is None else own.refusal
    if refusal is not None:
        raise ValueError(f"Stable-Baselines3's PPO has no policy for {refusal}; use metarl.sb3.policy(own_spaces=True)")


def _reading_plainly(layers: list[Tensor], state: Normalised) -> list[Tensor]:
    """Return layers that read observations as they are, where the first one reads them normalised."""
    mean, scale = (value[0].cpu().double().flatten() for value in (state.mean, state.scale))
    weight, bias = (value.double() for value in layers[:2])
    plain = weight / scale, bias - weight @ (mean / scale)
    return [*(value.to(layers[0].dtype) for value in plain), *layers[2:]]


def _environment(family: Any, task: Tasks | None, own: Native | None) -> VecEnv:
    """Return what a model is made for: the environment itself, or lanes that have its spaces."""
    if own is None:
        return TaskVecEnv(family, num_envs=1)
    if task is None:
        task = family.sample(1, "train", stream(0, "tasks/sb3"))
    parameters = {name: rows[0].numpy(force=True) for name, rows in task.parameters.items()}
    return DummyVecEnv([lambda: family.own(parameters)])


def saved(model: BaseAlgorithm) -> bytes:
    """Return a model as bytes, the contents of the file that its ``load`` reads."""
    buffer = io.BytesIO()
    model.save(buffer)
    return buffer.getvalue()


def import_actor(model: BaseAlgorithm | Path | str, algorithm: Algorithm, family: ControlFamily) -> Params:
    """Return the actor of a PPO or A2C model, or of its file, as meta-parameters for ``train(start=...)``.

    Raises:
        ValueError: it is not such a model, its network differs from the algorithm's, or it acts in another space than
            the family's policies and environments. The message says how.
    """
    read = _read(model)  # first: whatever it is, nothing of it is run
    learner = algorithm.build(family.spec)
    _refuse_bounded(learner.spec)
    if learner.buffers is not None:
        raise ValueError(
            f"{type(algorithm).__name__} would read other observations than the model's actor as soon as their running "
            "statistics move: start from a model without normalise_observations"
        )
    actor, layout = _fitted(read, family), _layout(algorithm, family.spec)
    drawn = learner.init(Generator().manual_seed(0))
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


def _fitted(actor: Actor, family: ControlFamily) -> Actor:
    """Return an actor of the environment's own spaces as one of the family's policies. Raises ValueError for others."""
    lanes = family.environment(1, torch.device("cpu"))
    lanes.close()
    sees, acts = lanes.single_observation_space, lanes.single_action_space
    own = None if _same(actor.acts, acts) and _same(actor.sees, sees) else native(family, None)
    if own is not None:
        _refuse_spaces(own)
    if own is not None and not _same(actor.sees, sees):
        actor = actor._replace(layers=choosing_natively(reading_native(actor.layers, own), own))
    if actor.log_std is None or _same(actor.acts, acts):
        return actor
    if own is None or not _same(actor.acts, own.actions):
        expected = acts if own is None else own.actions
        raise ValueError(f"the model acts in {actor.acts} where the family's environments act in {expected}")
    layers, log_std = acting_natively(actor.layers, actor.log_std, own)
    return actor._replace(layers=layers, log_std=log_std)


def _same(one: Any, other: Any) -> bool:
    """Return whether two spaces are the same to a network: Boxes with the same bounds, whatever their dtypes."""
    if not (isinstance(one, spaces.Box) and isinstance(other, spaces.Box)):
        return type(one) is type(other)
    ends = [(box.low.astype(float).ravel(), box.high.astype(float).ravel()) for box in (one, other)]
    return all(mine.shape == theirs.shape and np.allclose(mine, theirs) for mine, theirs in zip(*ends, strict=True))


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


def _model(actor: Actor, env: VecEnv, own: Native | None, options: dict[str, Any]) -> PPO:
    widths = [len(bias) for bias in actor.layers[1:-1:2]]
    network = {"net_arch": {"pi": widths, "vf": widths}, "activation_fn": type(ACTIVATIONS[actor.activation]())}
    options = {"device": "cpu", **options, "policy_kwargs": network}
    kind: Any = "MlpPolicy" if own is None or not composite(own.observations) else "MultiInputPolicy"
    model = PPO(ShiftedPolicy if own is not None and own.shifted else kind, env, **options)
    layers, log_std = actor.layers, actor.log_std
    if log_std is not None:
        log_std = log_std.clamp_min(torch.tensor(MINIMUM_STD).log())
    if own is not None:
        layers, log_std = to_native(layers, log_std, own)
    values = dict(zip(_names(len(layers) // 2), layers, strict=True))
    if log_std is not None:
        values["log_std"] = log_std
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


def _check(model: PPO, trained: Trained, state: State, own: Native | None) -> None:
    """Raise ValueError unless both policies give the same log-probabilities for random observations."""
    spec, generator = trained.learner.spec, Generator().manual_seed(0)
    assert isinstance(model.policy, ActorCriticPolicy)
    given, observations = _observations(spec, own, generator, state, model.observation_space)
    with torch.no_grad():
        outputs = outputs_at(trained.learner, state, observations.to(trained.device)).cpu()
        actions = spec.distribution.sample(outputs, generator)
        expected = spec.distribution.log_prob(outputs, actions)
        if own is not None and spec.kind == "continuous":
            middle, half = (end.to(actions.dtype) for end in own.ends)
            actions, expected = middle + half * actions, expected - half.log().sum()
        elif own is not None:
            actions = own.acted(actions)
        if isinstance(model.action_space, spaces.MultiBinary):
            actions = actions.to(outputs.dtype)  # SB3's Bernoulli distribution counts in these
        theirs = model.policy.get_distribution(_on(given, model)).log_prob(actions.to(model.device))
    difference = (expected - theirs.cpu()).abs().max()
    if not difference < TOLERANCE:
        raise ValueError(
            f"log-probabilities of the exported policy differ by {difference:.2g}: the network of "
            f"{type(trained.algorithm).__name__} is more than its linear layers tell"
        )


def _on(observations: Any, model: PPO) -> Any:
    if isinstance(observations, dict):
        return {name: values.to(model.device) for name, values in observations.items()}
    return observations.to(model.device)


def _observations(
    spec: Spec, own: Native | None, generator: Generator, state: State, sees: spaces.Space[Any]
) -> tuple[Any, Tensor]:
    """Return random observations as Stable-Baselines3 gets them, and as metarl's policy does."""
    if own is None and is_image_space(sees):  # with channels first: SB3 wraps its environments
        given = torch.randint(256, (64, *spec.input_shape), generator=generator)
        return given, given / 255
    if isinstance(state, Normalised) and own is None:  # such as there are: far from them, rounding is magnified
        noise = torch.randn(64, *spec.input_shape, generator=generator)
        given = state.mean.cpu() + state.scale.cpu() * noise
        return given, given
    if own is not None and not isinstance(own.observations, spaces.Box | spaces.Discrete):
        own.observations.seed(0)
        some = [own.observations.sample() for _ in range(64)]
        seen = torch.stack([torch.from_numpy(own.seen(one)) for one in some])
        if not composite(own.observations):
            return torch.from_numpy(np.stack(some)), seen
        return {name: torch.from_numpy(np.stack([one[name] for one in some])) for name in some[0]}, seen
    if own is None or (isinstance(own.observations, spaces.Box) and np.issubdtype(own.observations.dtype, np.floating)):
        shape = spec.input_shape if own is None else own.observations.shape
        given = torch.randn(64, *shape, generator=generator)
    else:
        low, number = (own.observations.start, own.observations.n) if own.observations.shape == () else (0, 100)
        given = low + torch.randint(int(number), (64, *own.observations.shape), generator=generator)
    if own is None:
        return given, given
    seen = torch.stack([torch.from_numpy(own.seen(one)) for one in given.numpy()])
    if is_image_space(own.observations) and not is_image_space_channels_first(own.observations):
        given = given.movedim(-1, 1)  # as SB3 wraps its environments
    return given, seen


def _read(model: BaseAlgorithm | Path | str) -> Actor:
    """Read the actor of a model, or of its file. Raises ValueError if there is no actor of a known form."""
    if isinstance(model, BaseAlgorithm):
        kind = model.policy_kwargs.get("activation_fn")
        opened = Archive(kind and kind.__name__, model.policy.state_dict(), model.observation_space, model.action_space)
    else:
        opened = read_archive(expanded(model))
    values = opened.params
    if "action_net.weight" not in values or any(name.startswith("features_extractor.") for name in values):
        raise ValueError(
            f"{model if isinstance(model, str | Path) else type(model).__name__} has no actor that can be read: "
            "expected a PPO or A2C model with an MlpPolicy"
        )
    kinds = {nn.Tanh.__name__: "tanh", nn.ReLU.__name__: "relu"}
    activation = opened.activation or nn.Tanh.__name__
    if activation not in kinds:
        raise ValueError(f"the model's activation is {activation}: expected tanh or relu")
    depth = 1 + sum(name.startswith("mlp_extractor.policy_net.") for name in values) // 2
    if missing := [name for name in _names(depth) if name not in values]:
        raise ValueError(f"the model's actor has no parameter {missing[0]}")
    layers = [values[name].cpu() for name in _names(depth)]
    return Actor(kinds[activation], layers, values.get("log_std"), opened.sees, opened.acts)
