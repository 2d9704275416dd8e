"""Networks of several parts against the same layers called one after another, and what they refuse."""

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.func import functional_call

from metarl.environments import flat, parts_of
from metarl.networks import Network, loss_gradient, stack
from metarl.networks.routing import Routed, routed
from metarl.types import Spec

CAMERA = spaces.Box(0, 255, (9, 8, 3), np.uint8)
DEPTH = spaces.Box(0, 1, (1, 6, 6))
ARM = spaces.Box(-1, 1, (2,))
NESTED = spaces.Dict(
    arm=ARM, camera=CAMERA, door=spaces.Discrete(3), eyes=spaces.Tuple((DEPTH, spaces.Box(0, 255, (4, 9, 8), np.uint8)))
)
CONV = Network("convnet", hidden=(4, 5), kernels=(5, 3), downsample="flat", joint=(7,), activation="tanh")


def spec_of(space: Any, **changes: Any) -> Spec:
    parts = parts_of(space)
    return replace(Spec((sum(part.size for part in parts),), 2, "continuous", observations=parts), **changes)


def drawn(network: Network, spec: Spec, tasks: int) -> tuple[Any, dict[str, Tensor]]:
    model = network.build(spec)
    each = [model.init(torch.Generator().manual_seed(task)) for task in range(tasks)]
    return model, {name: torch.stack([params[name] for params in each]) for name in each[0]}


def samples(space: Any, number: int) -> list[Any]:
    space.seed(0)
    return [space.sample() for _ in range(number)]


def by_hand(params: dict[str, Tensor], picture: Tensor, number: int) -> Tensor:
    """The features of one picture ``[channel, height, width]``: two strided convolutions with layer norm."""
    features = picture.unsqueeze(0)
    for block, side in enumerate((5, 3)):
        weight, bias = (params[f"parts.picture_{number}.conv_{block}.{kind}"] for kind in ("weight", "bias"))
        features = nn.functional.conv2d(features, weight, bias, stride=2, padding=side // 2)
        features = (features - features.mean()) / (features.var(correction=0) + 1e-3).sqrt()
        weight, bias = (params[f"parts.picture_{number}.norm_{block}.{kind}"] for kind in ("weight", "bias"))
        features = torch.tanh(features * weight[:, None, None] + bias[:, None, None])
    return features.flatten()


def test_each_picture_has_convolutions_and_all_else_joins_behind_them() -> None:
    spec, observations = spec_of(NESTED), samples(NESTED, 3)
    model, params = drawn(CONV, spec, tasks=2)
    rows = torch.stack([torch.from_numpy(flat(spec.observations, one)).float() for one in observations])
    outputs = model.apply(params, rows.expand(2, -1, -1))
    for task in range(2):
        own = {name: value[task] for name, value in params.items()}
        for row, observation in enumerate(observations):
            camera = torch.from_numpy(observation["camera"]).permute(2, 0, 1) / 255
            depth, frames = torch.from_numpy(observation["eyes"][0]), torch.from_numpy(observation["eyes"][1]) / 255
            door = nn.functional.one_hot(torch.tensor(int(observation["door"])), 3)
            pictures = [by_hand(own, one, number) for number, one in enumerate((camera, depth, frames))]
            features = torch.cat([*pictures, torch.from_numpy(observation["arm"]), door.float()])
            hidden = torch.tanh(own["joint_0.weight"] @ features + own["joint_0.bias"])
            means = own["head.weight"] @ hidden + own["head.bias"]
            torch.testing.assert_close(outputs[task, row, :2], means, atol=1e-5, rtol=1e-4)
    assert torch.equal(outputs[..., 2:], torch.zeros_like(outputs[..., 2:]))  # log of the standard deviation 1


@pytest.mark.parametrize("network", [Network("conv4", filters=3), Network("resnet12", filters=2, joint=(3,)), CONV])
@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_a_batch_of_tasks_is_each_task_by_itself(network: Network, kind: Any) -> None:
    space = spaces.Dict(camera=spaces.Box(0, 255, (16, 17, 3), np.uint8), arm=ARM)
    spec = spec_of(space, kind=kind)
    model, params = drawn(network, spec, tasks=3)
    module = network._make(spec)
    inputs = torch.rand(3, 4, 2, *spec.input_shape, generator=torch.Generator().manual_seed(1))
    outputs = model.apply(params, inputs)
    assert outputs.shape == (3, 4, 2, spec.model_outputs)
    for task in range(3):
        own = {name: value[task] for name, value in params.items()}
        expected = functional_call(module, own, (inputs[task].flatten(0, 1),))
        torch.testing.assert_close(outputs[task].flatten(0, 1), expected, atol=1e-5, rtol=1e-4)


def test_gradients_are_those_of_finite_differences() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        spec = spec_of(NESTED)
        model, params = drawn(CONV, spec, tasks=2)
        rows = torch.rand(2, 5, *spec.input_shape, generator=torch.Generator().manual_seed(1))

        def loss(outputs: Tensor) -> Tensor:
            return outputs.sin().sum((1, 2))

        gradient = loss_gradient(model, params, list(params), rows, loss)
        for name in ("parts.picture_0.conv_0.weight", "parts.picture_2.conv_1.bias", "joint_0.weight", "head.bias"):
            direction = torch.randn(params[name].shape, generator=torch.Generator().manual_seed(2))
            ends = [loss(model.apply(params | {name: params[name] + step * direction}, rows)) for step in (1e-6, -1e-6)]
            along = (gradient[name] * direction).flatten(1).sum(1)
            torch.testing.assert_close(along, (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-7)
        # Hessian-vector products, which TRPO takes, by differences of gradients.
        inputs = {name: value.clone().requires_grad_() for name, value in params.items()}
        gradients = loss_gradient(model, inputs, list(inputs), rows, loss, second_order=True)
        direction = {
            name: torch.randn(value.shape, generator=torch.Generator().manual_seed(3)) for name, value in params.items()
        }
        dot = sum((gradients[name] * direction[name]).sum() for name in direction)
        products = torch.autograd.grad(dot, list(inputs.values()))
        moved = [
            loss_gradient(
                model, {name: params[name] + step * direction[name] for name in params}, list(params), rows, loss
            )
            for step in (1e-5, -1e-5)
        ]
        for name, product in zip(inputs, products, strict=True):
            torch.testing.assert_close(product, (moved[0][name] - moved[1][name]) / 2e-5, rtol=1e-3, atol=1e-5)
    finally:
        torch.set_default_dtype(torch.float32)


def test_numbers_behind_the_last_part_are_read_too() -> None:
    """A descriptor or a context is appended to the vector."""
    spec = spec_of(spaces.Dict(camera=CAMERA))
    wide = replace(spec, input_shape=(spec.input_shape[0] + 2,))
    module = Routed(spec.observations, [nn.Sequential(OrderedDict(flatten=nn.Flatten()))], wide.input_shape[0])
    assert module(torch.rand(3, *wide.input_shape)).shape == (3, wide.input_shape[0])
    model, params = drawn(CONV, wide, tasks=1)
    inputs = torch.zeros(1, 1, *wide.input_shape)
    changed = inputs.clone()
    changed[..., -1] = 1
    assert not torch.equal(model.apply(params, inputs), model.apply(params, changed))


def test_a_picture_alone_can_have_joint_layers() -> None:
    spec = Spec((3, 16, 16), 2, "continuous")
    plain, deeper = (Network("conv4", filters=4, joint=joint) for joint in ((), (6,)))
    assert set(drawn(deeper, spec, 1)[1]) - set(drawn(plain, spec, 1)[1]) == {"joint_0.weight", "joint_0.bias"}
    _, params = drawn(deeper, spec, 1)
    assert params["head.weight"].shape == (1, 2, 6)
    assert list(params)[-3:] == ["head.weight", "head.bias", "policy.log_std"]


@pytest.mark.parametrize(("side", "left"), [(32, 8), (31, 8), (5, 2), (1, 1)])
def test_flat_keeps_all_positions_and_takes_pictures_of_any_size(side: int, left: int) -> None:
    spec = Spec((1, side, side), 2, "continuous")
    network = Network("convnet", hidden=(3, 2), downsample="flat")
    model, params = drawn(network, spec, 1)
    assert params["head.weight"].shape == (1, 2, 2 * left**2)
    assert model.apply(params, torch.rand(1, 2, 1, side, side)).shape == (1, 2, 4)


def test_the_mlp_reads_all_parts_as_one_vector_as_before() -> None:
    spec = spec_of(NESTED)
    model = Network("mlp", hidden=(4,)).build(spec)
    assert model.layout is not None
    assert model.init(torch.Generator())["hidden_0.weight"].shape == (4, spec.input_shape[0])


@pytest.mark.parametrize(
    ("space", "network", "told"),
    [
        (
            spaces.Dict(arm=ARM, door=spaces.Discrete(2)),
            Network("conv4"),
            "none of the observations' parts \\('arm', 'door'\\) is a picture",
        ),
        (
            NESTED,
            Network("conv4", downsample="pool"),
            "the part 'camera' of the observations: conv4 halves images until nothing is left of 9x8: expected 16x16",
        ),
        (
            spaces.Dict(view=spaces.Tuple((ARM, DEPTH))),
            Network("resnet12"),
            "the part 'view/1' of the observations: resnet12 halves images",
        ),
    ],
)
def test_what_does_not_fit_is_told_by_its_part(space: Any, network: Network, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        network.build(spec_of(space))


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="joint=\\(0,\\) and filters=64: widths are at least 1"):
        Network("conv4", joint=(0,))
    with pytest.raises(ValueError, match="joint=\\(3,\\): mlp does not read that"):
        Network("mlp", joint=(3,))
    with pytest.raises(ValueError, match="downsample='even': expected one of stride, pool, flat"):
        Network("conv4", downsample="even")  # type: ignore[arg-type]


def test_initial_weights_follow_from_the_generator() -> None:
    spec = spec_of(NESTED)
    one, same, other = (CONV.build(spec).init(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["parts.picture_0.conv_0.weight"], other["parts.picture_0.conv_0.weight"])
    network, width = routed(
        lambda small: nn.Sequential(OrderedDict(flat=nn.Flatten(), head=nn.Linear(216, 1))),
        spec_of(spaces.Dict(camera=CAMERA)),
    )
    assert width == 216 and stack(dict(network.named_parameters()), 2) == {}
