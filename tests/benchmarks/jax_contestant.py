"""The same few-shot meta-iteration in JAX, as a JAX user would write it: all of it, sampling and Adam too, is jitted.

Networks and sampling are those of metarl's families, with JAX's random numbers. Tasks go through ``vmap``, or one after
another through ``lax.map``, which is the faster for convolutions on a CPU: XLA has no fast grouped ones there.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import torch
from entrant import Entrant
from few_shot import LEARNING_RATE, Problem, disagreement, noise, prepared, problem
from jax import Array, lax

from metarl.numerics import flatten
from metarl.types import Experience
from metarl.types import Params as TorchParams

Params = dict[str, Array]
Batch = tuple[Array, Array]  # inputs [item, ...], targets [item, ...]
Apply = Callable[[Params, Array], Array]
BATCH_NORM_EPSILON = 1e-3
LAYOUT = ("NHWC", "HWIO", "NHWC")


def perceptron(depth: int, normalise: bool, params: Params, inputs: Array) -> Array:
    hidden = inputs.reshape(len(inputs), -1)
    for layer in range(depth):
        hidden = hidden @ params[f"hidden_{layer}.weight"].T + params[f"hidden_{layer}.bias"]
        hidden = jax.nn.relu(batch_norm(params, layer, hidden) if normalise else hidden)
    return hidden @ params["head.weight"].T + params["head.bias"]


def conv4(params: Params, images: Array) -> Array:
    hidden = images.transpose(0, 2, 3, 1)
    for block in range(4):
        kernel = params[f"conv_{block}.weight"].transpose(2, 3, 1, 0)
        hidden = lax.conv_general_dilated(hidden, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=LAYOUT)
        hidden = jax.nn.relu(batch_norm(params, block, hidden + params[f"conv_{block}.bias"]))
    return hidden.mean((1, 2)) @ params["head.weight"].T + params["head.bias"]


def batch_norm(params: Params, layer: int, values: Array) -> Array:
    axes = tuple(range(values.ndim - 1))
    mean, variance = values.mean(axes), values.var(axes)
    scale = params[f"norm_{layer}.weight"] * lax.rsqrt(variance + BATCH_NORM_EPSILON)
    return (values - mean) * scale + params[f"norm_{layer}.bias"]


def squared_error(outputs: Array, targets: Array) -> Array:
    return jnp.square(outputs - targets).mean()


def cross_entropy(outputs: Array, targets: Array) -> Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), targets[:, None], 1).mean()


def meta_loss(
    apply: Apply,
    loss: Callable[[Array, Array], Array],
    step_size: float,
    mapping: str,
    params: Params,
    data: tuple[Batch, Batch],
) -> Array:
    """Mean query loss after one inner step; support and query ``[task, item, ...]``."""

    def of_task(task: tuple[Batch, Batch]) -> Array:
        (inputs, targets), (others, answers) = task
        slopes = jax.grad(lambda own: loss(apply(own, inputs), targets))(params)
        adapted = jax.tree.map(lambda value, slope: value - step_size * slope, params, slopes)
        return loss(apply(adapted, others), answers)

    losses = jax.vmap(of_task)(data) if mapping == "vmap" else lax.map(of_task, data)
    return losses.mean()


def sine_waves(tasks: int, shots: int, key: Array) -> tuple[Batch, Batch]:
    """Amplitudes in [0.1, 5], phases in [0, pi], inputs in [-5, 5]."""
    of_amplitude, of_phase, *of_inputs = jax.random.split(key, 4)
    amplitude = jax.random.uniform(of_amplitude, (tasks, 1, 1), minval=0.1, maxval=5.0)
    phase = jax.random.uniform(of_phase, (tasks, 1, 1), maxval=math.pi)
    support, query = (jax.random.uniform(one, (tasks, shots, 1), minval=-5.0, maxval=5.0) for one in of_inputs)
    return (support, amplitude * jnp.sin(support - phase)), (query, amplitude * jnp.sin(query - phase))


def episodes(images: Array, tasks: int, shots: int, key: Array, ways: int = 5) -> tuple[Batch, Batch]:
    """Different classes of ``images [class, item, 1, size, size]``, each turned, and different items of each."""

    def episode(key: Array) -> tuple[Array, Array]:
        of_classes, of_items, of_turns = jax.random.split(key, 3)
        classes = jax.random.choice(of_classes, len(images), (ways,), replace=False)
        choose = partial(jax.random.choice, a=images.shape[1], shape=(2 * shots,), replace=False)
        items = jax.vmap(choose)(jax.random.split(of_items, ways))
        chosen = images[classes[:, None], items].astype(jnp.float32) / 255
        turns = jax.random.randint(of_turns, (ways, 1, 1, 1, 1), 0, 4)
        chosen = jnp.where(turns % 2 == 1, jnp.rot90(chosen, 1, (-2, -1)), chosen)
        chosen = jnp.where(turns >= 2, jnp.flip(chosen, (-2, -1)), chosen)
        return tuple(half.reshape(ways * shots, *images.shape[2:]) for half in jnp.split(chosen, 2, axis=1))

    support, query = jax.vmap(episode)(jax.random.split(key, tasks))
    targets = jnp.broadcast_to(jnp.arange(ways).repeat(shots), support.shape[:2])
    return (support, targets), (query, targets)


def adam(params: Params, moments: tuple[Params, Params], count: Array, slopes: Params) -> Any:
    first = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, moments[0], slopes)
    second = jax.tree.map(lambda old, new: 0.999 * old + 0.001 * new * new, moments[1], slopes)
    corrected = 1 - 0.9**count, 1 - 0.999**count

    def moved(value: Array, mean: Array, square: Array) -> Array:
        return value - LEARNING_RATE * mean / corrected[0] / (jnp.sqrt(square / corrected[1]) + 1e-8)

    return jax.tree.map(moved, params, first, second), (first, second)


def jitted(mapping: str = "vmap", **what: Any) -> Entrant:
    """One iteration is one call of a compiled function."""
    found = problem(**what)
    loss = partial(meta_loss, network(what), cost(what), found.step_size, mapping)
    sample = sampler(found, what)
    far = checked(found, loss)

    @jax.jit
    def iterate(params: Params, moments: tuple[Params, Params], count: Array, key: Array) -> Any:
        key, own = jax.random.split(key)
        value, slopes = jax.value_and_grad(loss)(params, sample(own))
        return *adam(params, moments, count + 1, slopes), count + 1, key, value

    params = converted(prepared(found).first().params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = (params, (zeros, zeros), jnp.zeros(()), jax.random.key(0))

    def work(number: int) -> None:
        nonlocal state
        *state, value = iterate(*state)
        value.block_until_ready()

    return Entrant(work, {"disagreement": far, "threads": xla_threads()}, "cpu")


def xla_threads() -> int:
    """Threads of XLA's own pool, which has one for each processor; torch's number means nothing to it."""
    return len([task for task in Path("/proc/self/task").glob("*/comm") if "XLAEigen" in task.read_text()])


def network(what: dict[str, Any]) -> Apply:
    depth = len(what.get("hidden", ()))
    return conv4 if what["what"] == "conv4" else partial(perceptron, depth, what["what"] == "mlp")


def cost(what: dict[str, Any]) -> Callable[[Array, Array], Array]:
    return squared_error if what["what"] == "sinusoid" else cross_entropy


def sampler(found: Problem, what: dict[str, Any]) -> Callable[[Array], tuple[Batch, Batch]]:
    if what["what"] == "sinusoid":
        return partial(sine_waves, found.tasks, what["shots"])
    return partial(episodes, jnp.asarray(noise()[0].numpy()), found.tasks, what["shots"])


def checked(found: Problem, loss: Callable[[Params, tuple[Batch, Batch]], Array]) -> float:
    """Compare the meta-gradient with metarl's."""

    def gradient(params: TorchParams, experience: Experience) -> torch.Tensor:
        support, query = (tuple(map(as_jax, batch)) for batch in (experience.supports[0], experience.query))
        slopes = jax.jit(jax.grad(loss))(converted(params), (support, query))
        return flatten(torch.from_numpy(jnp.asarray(slopes[name]).__array__().copy()) for name in params)

    with jax.enable_x64(True):
        return disagreement(found, gradient)


def converted(params: TorchParams) -> Params:
    return {name: as_jax(value) for name, value in params.items()}


def as_jax(value: torch.Tensor) -> Array:
    return jnp.asarray(value.detach().cpu().numpy())
