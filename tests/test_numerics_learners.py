"""Every learner's outputs and meta-gradients: float32 on the CPU against float64, and on a GPU against the CPU."""

from dataclasses import fields, replace
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from support import precision
from support.precision import TOLERANCES, cast, data, distance, dtype
from support.synthetic import CONTINUOUS, DISCRETE
from torch import Tensor

from metarl import plugins, training
from metarl.algorithms.gradient.bmaml import BMAML
from metarl.algorithms.gradient.cavia import CAVIA
from metarl.algorithms.gradient.imaml import IMAML
from metarl.algorithms.gradient.leap import Leap
from metarl.algorithms.gradient.meta_lstm import MetaLSTM
from metarl.algorithms.maml import MAML
from metarl.algorithms.mann import MANN
from metarl.algorithms.matching import Matching
from metarl.algorithms.multitask import MultiTask
from metarl.algorithms.protonet import ProtoNet
from metarl.algorithms.reptile import Reptile
from metarl.algorithms.rl2 import RL2
from metarl.algorithms.siamese import Siamese
from metarl.algorithms.snail import SNAIL
from metarl.networks.options import Network
from metarl.numerics import flatten
from metarl.speed.devices import float32
from metarl.types import Batch, Experience, Learner, Params, Spec, inputs_of

CURVE, VECTORS = Spec((2,), 1, "regression", 2), Spec((6,), 5, "classification")
IMAGES, LARGE, COLOURS = (Spec(shape, 5, "classification") for shape in ((1, 16, 16), (1, 28, 28), (3, 16, 16)))
CONTROL, EXAMPLES = (CONTINUOUS, DISCRETE), (CURVE, VECTORS)
TANH, RELU = Network(hidden=(64, 64), activation="tanh"), Network(hidden=(32, 32))
NORMALISED, RESIDUAL = Network(hidden=(16, 16), normalise=True), Network("resnet12", filters=2)
STRIDED, POOLED, INDUCTIVE = (
    Network("conv4", filters=4, downsample=downsample, batch_norm=statistics)
    for downsample, statistics in (("stride", "transductive"), ("pool", "transductive"), ("stride", "inductive"))
)
WIDE, WIDE_POOLED = Network("conv4", filters=32), Network("conv4", filters=32, downsample="pool")
SNAIL_SIZES = {"channels": 16, "keys": (8, 16), "values": (8, 16), "embedding": 16}
MANN_SIZES = {"slots": 16, "width": 8, "controller": 24, "heads": 2}


class Case(NamedTuple):
    algorithm: Any
    spec: Spec
    seed: int = 0
    """Of data that lie far from where networks of ReLU bend: a test looks."""

    def __str__(self) -> str:
        """Name what differs from the algorithm's defaults."""
        default, names = type(self.algorithm)(), [field.name for field in fields(self.algorithm)]
        chosen = {name: getattr(self.algorithm, name) for name in names if name != "network"}
        changed = [f"{name}={value}" for name, value in chosen.items() if value != getattr(default, name)]
        network = getattr(self.algorithm, "network", None)
        told = [] if network is None else [network.architecture, network.batch_norm, network.downsample]
        named = [type(self.algorithm).__name__, self.spec.kind, *self.spec.input_shape, *told, *changed]
        return "-".join(map(str, named))

    @property
    def compared(self) -> str:
        """What the meta-gradient's tolerance is called."""
        if isinstance(self.algorithm, Reptile | BMAML | Leap):  # a difference of nearly equal parameters, or losses
            return "meta-gradients, Reptile"
        if self.spec in (LARGE, COLOURS):  # among so many activations some lie within rounding of where ReLU bends
            return "meta-gradients, large images and ResNet-12"
        return "meta-gradients"


def maml(network: Network) -> list[MAML]:
    """MAML, and what its options make of it: first-order MAML, ANIL, Meta-SGD, MAML++'s step sizes."""
    learned = {"learn_step_sizes": True}
    options = [{}, {"first_order": True}, {"adapt_only": ("head",)}, learned, learned | {"step_sizes": "layer_step"}]
    return [MAML(steps=2, network=network, **each) for each in options]


CASES = [
    *(Case(each, spec) for spec in (*CONTROL, *EXAMPLES) for each in maml(TANH)),
    *(Case(MAML(steps=2, network=RELU), spec, seed=1) for spec in (*CONTROL, *EXAMPLES)),
    *(Case(MAML(steps=5, network=TANH, multi_step_loss=1.0), spec) for spec in EXAMPLES),
    *(Case(MAML(steps=2, surrogate="log_likelihood", network=TANH), spec) for spec in CONTROL),
    *(Case(MAML(steps=2, surrogate="dice", network=TANH), spec) for spec in CONTROL),
    *(Case(MAML(steps=2, exploration_term=1.0, network=TANH), spec) for spec in CONTROL),
    *(Case(Reptile(network=TANH, optimiser="sgd", carry_moments=False), spec) for spec in (*CONTROL, *EXAMPLES)),
    *(Case(Reptile(network=TANH), spec) for spec in EXAMPLES),
    *(Case(MultiTask(network=RELU), spec) for spec in (*CONTROL, *EXAMPLES)),
    *(Case(MultiTask(network=RELU, weighting=each), CURVE) for each in ("uncertainty", "pcgrad", "gradnorm")),
    *(Case(MultiTask(network=RELU, condition=each), CURVE) for each in ("concatenate", "add", "multiply", "heads")),
    *(Case(each, VECTORS) for each in maml(NORMALISED)),
    *(Case(each, IMAGES) for network in (STRIDED, POOLED) for each in maml(network)),
    *(Case(each, IMAGES, seed=5) for each in maml(INDUCTIVE)),
    Case(Reptile(network=STRIDED), IMAGES),
    Case(MAML(network=RESIDUAL), COLOURS),
    Case(MultiTask(network=STRIDED), IMAGES),
    *(Case(ProtoNet(network=each), IMAGES) for each in (STRIDED, POOLED, INDUCTIVE)),
    Case(ProtoNet(network=STRIDED, distance="cosine"), IMAGES),
    *(Case(Matching(network=POOLED, full_context=each), IMAGES) for each in (False, True)),
    Case(Matching(network=POOLED, learn_scale=True), IMAGES),
    Case(Siamese(network=POOLED), IMAGES),
    Case(SNAIL(network=POOLED, **SNAIL_SIZES), IMAGES),
    *(Case(SNAIL(network=RELU, **SNAIL_SIZES), spec) for spec in EXAMPLES),
    *(Case(MANN(**MANN_SIZES), spec) for spec in EXAMPLES),
    Case(MANN(write="key", key_strength=1.0, learn_key_strength=False, **MANN_SIZES), VECTORS),
    *(Case(MetaLSTM(steps=3, network=TANH, second_order=each), spec) for spec in EXAMPLES for each in (False, True)),
    Case(MetaLSTM(steps=2, network=INDUCTIVE), IMAGES, seed=5),
    *(Case(RL2(hidden=64), spec) for spec in (*CONTROL, *EXAMPLES)),
    *(Case(CAVIA(steps=2, network=TANH), spec) for spec in (*CONTROL, *EXAMPLES)),
    *(Case(CAVIA(context_in="film", network=TANH), spec) for spec in (*CONTROL, *EXAMPLES)),
    Case(CAVIA(context_in="film", network=STRIDED), IMAGES),
    *(Case(IMAML(steps=5, network=TANH), spec) for spec in EXAMPLES),
    Case(IMAML(steps=5, momentum=0.5, step_size=0.05, network=TANH), CURVE),
    Case(IMAML(steps=5, network=STRIDED), IMAGES, seed=2),
    *(Case(BMAML(particles=3, network=TANH), spec) for spec in EXAMPLES),
    Case(BMAML(particles=2, network=STRIDED), IMAGES),
    *(Case(BMAML(particles=2, steps=2, network=TANH), spec) for spec in CONTROL),
    *(Case(Leap(steps=5, network=TANH), spec) for spec in EXAMPLES),
    Case(Leap(steps=5, network=STRIDED), IMAGES),
    *(Case(MAML(network=network), LARGE) for network in (WIDE, WIDE_POOLED)),
    *(Case(ProtoNet(network=network), LARGE) for network in (WIDE, WIDE_POOLED)),
]


class Found(NamedTuple):
    outputs: Tensor
    gradient: Tensor


@cache
def prepared(case: Case) -> tuple[Learner, Params, Experience]:
    """Made in float64, whatever it is computed in."""
    with dtype(torch.float64):
        learner = case.algorithm.build(case.spec)
        params, experience = data(learner, case.seed)
        if getattr(case.algorithm, "weighting", "equal") != "equal":  # which reads one-hot descriptors
            kinds = torch.arange(len(experience.descriptors)) % case.spec.descriptor_size
            experience = replace(experience, descriptors=torch.eye(case.spec.descriptor_size)[kinds])
        return learner, params, experience


@cache
def computed(case: Case, chosen: torch.dtype, device: str = "cpu", noise: float = 0.0) -> Found:
    """Adapt, and differentiate the meta-loss; with noise on the parameters."""
    learner, params, experience = prepared(case)
    generator = torch.Generator().manual_seed(0)
    params = {
        name: value * (1 + noise * torch.randn(value.shape, generator=generator, dtype=value.dtype))
        for name, value in params.items()
    }
    params, experience = cast(params, experience, chosen, device)
    with dtype(chosen), float32(torch.device(device)):
        outputs = adapted_outputs(learner, params, experience)
        leaves = {name: value.requires_grad_() for name, value in params.items()}
        loss, _ = learner.meta_loss(leaves, replace(experience, supports=experience.supports[: learner.adaptations]))
        compared = [value for name, value in leaves.items() if name not in immaterial(case)]
        gradient = torch.autograd.grad(loss.mean(), compared, materialize_grads=True)
    return Found(outputs.cpu(), flatten(gradient).cpu())


def immaterial(case: Case) -> list[str]:
    """Name biases before batch norm where Reptile's Adam takes steps of full length along their rounding errors."""
    return [f"conv_{block}.bias" for block in range(4)] if isinstance(case.algorithm, Reptile) else []


@torch.no_grad()
def adapted_outputs(learner: Learner, params: Params, experience: Experience) -> Tensor:
    """What is said of the query before and after each adaptation, in one vector."""
    state, said = learner.begin(params, experience.descriptors), list[Tensor]()
    for support in experience.supports:
        said.append(asked(learner, state, experience.query))
        state = learner.adapt(state, support)
    return flatten([*said, asked(learner, state, experience.query)])


def asked(learner: Learner, state: Any, query: Batch) -> Tensor:
    if learner.spec.control and learner.memory is not None:
        return learner.memory.unroll(state, query)[0]
    return learner.predict(state, inputs_of(query))[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_is_as_near_to_float64_as_is_stated(case: Case) -> None:
    assert_near(case, computed(case, torch.float32), computed(case, torch.float64))


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_gpu_is_as_near_to_the_cpu_as_is_stated(case: Case) -> None:
    where = ", convolutions on a GPU" if case.spec in (IMAGES, LARGE, COLOURS) else ""
    assert_near(case, computed(case, torch.float32, "cuda"), computed(case, torch.float32), where)


def assert_near(case: Case, found: Found, expected: Found, where: str = "") -> None:
    """cuDNN's convolutions transform their inputs (Winograd), which loses digits; the second derivative loses more."""
    compared = f"{case.compared}{where}" if case.compared == "meta-gradients" else case.compared
    precision.assert_near(f"outputs{where}", found.outputs, expected.outputs)
    precision.assert_near(compared, found.gradient, expected.gradient)


@pytest.mark.parametrize("case", [case for case in CASES if case.compared == "meta-gradients"], ids=str)
def test_data_lie_far_from_where_networks_bend(case: Case) -> None:
    """Else a change of 1e-7 in an activation could change a gradient by percents, and not for lack of precision."""
    moved = computed(case, torch.float64, noise=3e-6)
    assert distance(moved.gradient, computed(case, torch.float64).gradient) < 3e-4


def test_tolerances_are_narrow_enough_to_find_tf32() -> None:
    """Its 10 bits, on weights alone."""
    case = Case(MAML(network=STRIDED), IMAGES)
    moved, exact = computed(case, torch.float64, noise=2**-11), computed(case, torch.float64)
    assert distance(moved.outputs, exact.outputs) > 10 * TOLERANCES["outputs"]
    assert distance(moved.gradient, exact.gradient) > 10 * TOLERANCES["meta-gradients"]
    assert distance(moved.outputs, exact.outputs) > 10 * TOLERANCES["outputs, convolutions on a GPU"]
    assert distance(moved.gradient, exact.gradient) > 10 * TOLERANCES["meta-gradients, convolutions on a GPU"]


@pytest.mark.parametrize("name", [plugin.name for plugin in plugins.available("algorithms")])
def test_no_algorithm_and_no_kind_is_left_out(name: str) -> None:
    algorithm = training.source("algorithms", name).target
    if not type(algorithm).__module__.startswith("metarl."):
        pytest.skip("not one of metarl's own")
    served = {spec.kind for spec in (*CONTROL, *EXAMPLES) if serves(algorithm, spec)}
    assert {case.spec.kind for case in CASES if type(case.algorithm) is type(algorithm)} == served


def serves(algorithm: Any, spec: Spec) -> bool:
    try:
        algorithm.build(spec)
    except ValueError:
        return False
    return True
