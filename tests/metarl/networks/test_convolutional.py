"""Convolutional networks against plain PyTorch, one task after another; batch norm and meta-gradients with them."""

import math

import pytest
import torch
from support import synthetic
from torch import nn
from torch.nn import functional

from metarl.algorithms.maml import MAML
from metarl.networks.options import Network
from metarl.types import Examples, Experience, Spec

pytestmark = pytest.mark.usefixtures("float64")

GREY, COLOUR = Spec((1, 28, 28), 5, "classification"), Spec((3, 84, 84), 5, "classification")
TINY = {"stride": Spec((1, 17, 17), 3, "classification"), "pool": Spec((1, 16, 16), 3, "classification")}
each_downsample = pytest.mark.parametrize("downsample", ["stride", "pool"])
each_batch_norm = pytest.mark.parametrize("batch_norm", ["transductive", "inductive"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def parameters(model, tasks):
    """Different ones for each task, of which none is 0 or 1, as biases and batch norm's would be."""
    single, rng = model.init(generator()), generator(1)
    return {
        name: (value + 0.1 * torch.randn(tasks, *value.shape, generator=rng)).requires_grad_()
        for name, value in single.items()
    }


def normalise(images, weight, bias, known, eps=1e-5):
    """Batch norm in plain operations, by the statistics of the first ``known`` items."""
    mean = images[:known].mean((0, 2, 3), keepdim=True)
    variance = (images[:known] - mean).square().mean((0, 2, 3), keepdim=True)
    return (images - mean) / (variance + eps).sqrt() * weight[:, None, None] + bias[:, None, None]


def conv4(own, images, downsample, known=None):
    """The MAML paper's network of one task, as it is described."""
    for block in range(4):
        weight, bias = own[f"conv_{block}.weight"], own[f"conv_{block}.bias"]
        images = functional.conv2d(images, weight, bias, stride=2 if downsample == "stride" else 1, padding=1)
        scale, shift = own[f"norm_{block}.weight"], own[f"norm_{block}.bias"]
        images = normalise(images, scale, shift, len(images) if known is None else known, eps=1e-3).relu()
        if downsample == "pool":
            images = functional.max_pool2d(images, 2)
    features = images.mean((2, 3)) if downsample == "stride" else images.flatten(1)
    return functional.linear(features, own["head.weight"], own["head.bias"])


def resnet12(own, images, known=None):
    """MetaOptNet's network of one task, without dropout."""
    known = len(images) if known is None else known

    def layer(name, number, inputs, padding):
        images = functional.conv2d(inputs, own[f"{name}.conv{number}.weight"], padding=padding)
        return normalise(images, own[f"{name}.norm{number}.weight"], own[f"{name}.norm{number}.bias"], known)

    for block in range(4):
        shortcut = layer(f"block_{block}.shortcut", "", images, 0)
        images = functional.leaky_relu(layer(f"block_{block}.body", "_0", images, 1), 0.1)
        images = functional.leaky_relu(layer(f"block_{block}.body", "_1", images, 1), 0.1)
        images = layer(f"block_{block}.body", "_2", images, 1) + shortcut
        images = functional.max_pool2d(functional.leaky_relu(images, 0.1), 2)
    return functional.linear(images.mean((2, 3)), own["head.weight"], own["head.bias"])


def task_of(params, task):
    return {name: value[task] for name, value in params.items()}


def assert_same_with_derivatives(found, expected, leaves, order):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    some = [(found.square().sum(), expected.square().sum())]
    for _ in range(order):
        ours, theirs = (torch.autograd.grad(value, leaves, create_graph=True) for value in some[-1])
        # Biases before batch norm have no gradient but rounding errors.
        largest = max(float(value.detach().abs().max()) for value in theirs)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8 * largest)
        some.append(tuple(sum(one.square().sum() for one in values) for values in (ours, theirs)))


@pytest.mark.parametrize(
    ("spec", "downsample", "filters", "tasks", "order"),
    [
        (GREY, "stride", 64, 3, 2),
        (GREY, "stride", 32, 2, 2),
        (GREY, "pool", 64, 2, 2),
        (COLOUR, "pool", 32, 2, 1),
        (COLOUR, "stride", 32, 2, 1),
        (Spec((2, 17, 30), 4, "regression"), "pool", 3, 3, 2),
        (Spec((2, 5, 3), 4, "regression"), "stride", 3, 3, 2),
    ],
    ids=str,
)
def test_conv4_equals_a_loop_over_tasks(spec, downsample, filters, tasks, order):
    torch.set_num_threads(1)
    model = Network("conv4", filters=filters, downsample=downsample).build(spec)
    params = parameters(model, tasks)
    images = torch.rand(tasks, 3, *spec.input_shape, generator=generator(2))
    expected = torch.stack([conv4(task_of(params, task), images[task], downsample) for task in range(tasks)])
    assert_same_with_derivatives(model.apply(params, images), expected, list(params.values()), order)


@each_downsample
def test_convnet_of_conv4s_blocks_is_conv4(downsample):
    same = Network("convnet", hidden=(4, 4, 4, 4), downsample=downsample).build(COLOUR)
    model = Network("conv4", filters=4, downsample=downsample).build(COLOUR)
    params, images = model.init(generator()), torch.rand(1, 3, *COLOUR.input_shape, generator=generator(2))
    assert {name: value.tolist() for name, value in same.init(generator()).items()} == {
        name: value.tolist() for name, value in params.items()
    }
    own = {name: value.unsqueeze(0) for name, value in params.items()}
    assert torch.equal(same.apply(own, images), model.apply(own, images))


@each_downsample
def test_convnet_equals_a_loop_over_tasks(downsample):
    """Two blocks, of 3 filters of side 5 and 4 filters of side 1, as plain functions."""
    network = Network("convnet", hidden=(3, 4), kernels=(5, 1), activation="silu", downsample=downsample)
    model = network.build(TINY[downsample])
    params = parameters(model, 2)
    images = torch.rand(2, 3, *TINY[downsample].input_shape, generator=generator(2))

    def slowly(own, rows):
        for block, padding in ((0, 2), (1, 0)):
            weight, bias = own[f"conv_{block}.weight"], own[f"conv_{block}.bias"]
            assert weight.shape[2:] == (2 * padding + 1, 2 * padding + 1)
            stride = 2 if downsample == "stride" else 1
            rows = functional.conv2d(rows, weight, bias, stride=stride, padding=padding)
            scale, shift = own[f"norm_{block}.weight"], own[f"norm_{block}.bias"]
            rows = functional.silu(normalise(rows, scale, shift, len(rows), eps=1e-3))
            rows = functional.max_pool2d(rows, 2) if downsample == "pool" else rows
        features = rows.mean((2, 3)) if downsample == "stride" else rows.flatten(1)
        return functional.linear(features, own["head.weight"], own["head.bias"])

    expected = torch.stack([slowly(task_of(params, task), images[task]) for task in range(2)])
    assert_same_with_derivatives(model.apply(params, images), expected, list(params.values()), 2)


def test_a_kernel_is_used_for_all_later_blocks():
    params = Network("convnet", hidden=(2, 2, 2), kernels=(5, 3)).build(GREY).init(generator())
    assert [params[f"conv_{block}.weight"].shape[-1] for block in range(3)] == [5, 3, 3]


@pytest.mark.parametrize(
    ("network", "spec", "told"),
    [
        (Network("convnet", hidden=(2,), kernels=(3, 3)), GREY, "convnet has 1 blocks and 2 kernels"),
        (Network("convnet", hidden=()), GREY, "convnet has 0 blocks"),
        (Network("convnet", hidden=(2,) * 5, downsample="pool"), GREY, "convnet halves images .*28x28: expected 32x32"),
        (Network("convnet", hidden=(2,)), Spec((3,), 2, "regression"), "convnet reads images"),
    ],
)
def test_what_convnet_cannot_be_is_told(network, spec, told):
    with pytest.raises(ValueError, match=told):
        network.build(spec)


@pytest.mark.parametrize(("spec", "filters", "order"), [(GREY, 4, 2), (COLOUR, 2, 1)], ids=["grey", "colour"])
def test_resnet12_equals_a_loop_over_tasks(spec, filters, order):
    torch.set_num_threads(1)
    model = Network("resnet12", filters=filters).build(spec)
    params = parameters(model, 2)
    images = torch.rand(2, 3, *spec.input_shape, generator=generator(2))
    expected = torch.stack([resnet12(task_of(params, task), images[task]) for task in range(2)])
    assert_same_with_derivatives(model.apply(params, images), expected, list(params.values()), order)


@each_downsample
def test_a_stack_of_pytorchs_own_modules(downsample):
    """The same once more, in the words in which the field writes it."""

    def block(channels):
        layers = [
            nn.Conv2d(channels, 32, 3, stride=1 if downsample == "pool" else 2, padding=1),
            nn.BatchNorm2d(32, eps=1e-3, track_running_stats=False),
            nn.ReLU(),
        ]
        return [*layers, nn.MaxPool2d(2)] if downsample == "pool" else layers

    last = [nn.Flatten()] if downsample == "pool" else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    plain = nn.Sequential(*block(1), *block(32), *block(32), *block(32), *last, nn.Linear(32, 5))
    model = Network("conv4", filters=32, downsample=downsample).build(GREY)
    params = parameters(model, 2)
    images = torch.rand(2, 4, 1, 28, 28, generator=generator(2))
    outputs = model.apply(params, images)
    for task in range(2):
        names = plain.state_dict().keys()
        plain.load_state_dict(dict(zip(names, task_of(params, task).values(), strict=True)))
        torch.testing.assert_close(outputs[task], plain(images[task]), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "spec", "count"),
    [
        # 9 * 64 + 64 + 2 * 64, three times 9 * 64 * 64 + 64 + 2 * 64, and 64 * 5 + 5
        ({"downsample": "stride"}, GREY, 112_261),
        ({"downsample": "pool"}, GREY, 112_261),
        # 27 * 32 + 32 + 2 * 32, three times 9 * 32 * 32 + 32 + 2 * 32, and 5 * 5 * 32 * 5 + 5
        ({"filters": 32, "downsample": "pool"}, COLOUR, 32_901),
        # 9 c f + 2 * 9 f f + c f + 8 f for (c, f) = (3, 64), (64, 128), (128, 256), (256, 512); and 512 * 5 + 5
        ({"architecture": "resnet12"}, COLOUR, 7_999_365),
    ],
    ids=str,
)
def test_numbers_of_parameters(options, spec, count):
    params = Network(**{"architecture": "conv4"} | options).build(spec).init(generator())
    assert sum(value.numel() for value in params.values()) == count


def test_initial_values_of_conv4():
    for downsample in ("stride", "pool"):
        params = Network("conv4", downsample=downsample).build(GREY).init(generator())
        for block, channels in enumerate((1, 64, 64, 64)):
            bound = math.sqrt(6 / (9 * channels + 9 * 64))
            assert 0.97 * bound < params[f"conv_{block}.weight"].abs().max() <= bound
            assert params[f"conv_{block}.weight"].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
            assert not params[f"conv_{block}.bias"].any()
            assert (params[f"norm_{block}.weight"] == 1).all()
            assert not params[f"norm_{block}.bias"].any()
        deviation = 1 if downsample == "stride" else math.sqrt(2 / (64 + 5))
        assert params["head.weight"].std().item() == pytest.approx(deviation, rel=0.1)
        assert not params["head.bias"].any()


def test_initial_values_of_resnet12():
    params = Network("resnet12", filters=16).build(COLOUR).init(generator())
    for name, fan_out in {"body.conv_0": 9 * 32, "body.conv_2": 9 * 32, "shortcut.conv": 32}.items():
        assert params[f"block_1.{name}.weight"].std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)
        assert f"block_1.{name}.bias" not in params
    assert (params["block_3.shortcut.norm.weight"] == 1).all()


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        (
            {"architecture": "conv4"},
            (784,),
            r"conv4 reads images \[channel, height, width\], not inputs of shape \(784,",
        ),
        ({"architecture": "conv4", "downsample": "pool"}, (1, 15, 28), "nothing is left of 15x28: expected 16x16"),
        ({"architecture": "resnet12"}, (3, 28, 15), "resnet12 halves images until nothing is left of 28x15"),
    ],
    ids=str,
)
def test_images_that_do_not_fit_are_refused(options, shape, message):
    with pytest.raises(ValueError, match=message):
        Network(**options).build(Spec(shape, 5, "classification"))


# MAML through convolutions: meta-gradients, and whom a query item sees


def learner_of(downsample, batch_norm="transductive", **options):
    network = Network("conv4", filters=3, downsample=downsample, batch_norm=batch_norm)
    return MAML(step_size=0.3, network=network, **options).build(TINY[downsample])


def given(learner, tasks=2):
    rng = generator(3)
    support, query = (synthetic.examples(learner.spec, tasks, rng, items) for items in (5, 4))
    return Experience(descriptors=torch.zeros(tasks, 0), supports=(support,) * learner.adaptations, query=query)


def moved(learner):
    """Parameters off their start, where biases and the shifts of batch norm are exactly at ReLU's kink."""
    params, rng = learner.init(generator()), generator(1)
    return {name: value + 0.2 * torch.randn(value.shape, generator=rng) for name, value in params.items()}


def reference_meta_loss(params, experience, downsample, batch_norm, step_size=0.3):
    """MAML as the paper writes it: a loop over tasks, and plain autograd."""
    losses = []
    for task in range(len(experience.descriptors)):
        own, items = params, experience.supports[0].inputs[task]
        for support in experience.supports:
            loss = functional.cross_entropy(conv4(own, items, downsample), support.targets[task])
            gradients = torch.autograd.grad(loss, list(own.values()), create_graph=True)
            own = {name: value - step_size * one for (name, value), one in zip(own.items(), gradients, strict=True)}
        query = experience.query.inputs[task]
        if batch_norm == "inductive":
            outputs = conv4(own, torch.cat([items, query]), downsample, known=len(items))[len(items) :]
        else:
            outputs = conv4(own, query, downsample)
        losses.append(functional.cross_entropy(outputs, experience.query.targets[task]))
    return torch.stack(losses).mean()


@each_downsample
@each_batch_norm
@pytest.mark.parametrize("steps", [1, 2])
def test_maml_equals_a_loop_over_tasks(downsample, batch_norm, steps):
    learner = learner_of(downsample, batch_norm, steps=steps)
    experience = given(learner)
    params = {name: value.requires_grad_() for name, value in moved(learner).items()}
    found = learner.meta_loss(params, experience)[0].mean()
    expected = reference_meta_loss(params, experience, downsample, batch_norm)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss, list(params.values())) for loss in (found, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-7, atol=1e-9)


@each_downsample
@each_batch_norm
def test_meta_gradient_matches_finite_differences(downsample, batch_norm):
    learner = learner_of(downsample, batch_norm, steps=2)
    experience, params = given(learner), moved(learner)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    gradients = torch.autograd.grad(learner.meta_loss(leaves, experience)[0].mean(), list(leaves.values()))

    # A narrow difference: at a kink of ReLU or a change of a maximum, the inner gradients jump, and the meta-loss too.
    def shifted(name, index, by):
        changed = {key: value.clone() for key, value in params.items()}
        changed[name].view(-1)[index] += by
        with torch.no_grad():
            return float(learner.meta_loss(changed, experience)[0].mean())

    for (name, value), gradient in zip(params.items(), gradients, strict=True):
        for index in {0, value.numel() // 2, value.numel() - 1}:
            expected = (shifted(name, index, 1e-7) - shifted(name, index, -1e-7)) / 2e-7
            assert float(gradient.view(-1)[index]) == pytest.approx(expected, rel=1e-4, abs=1e-6), name


@each_downsample
@each_batch_norm
def test_who_sees_whom(downsample, batch_norm):
    """Before adaptation and after: a query item changes others only when transductive, and other tasks never."""
    learner = learner_of(downsample, batch_norm)
    experience, params = given(learner), moved(learner)
    query = experience.query.inputs
    changed = query.clone()
    changed[0, 2] = torch.randn(learner.spec.input_shape, generator=generator(4))
    state = learner.begin(params, experience.descriptors)
    for reached in (state, learner.adapt(state, experience.supports[0])):
        before, after = (learner.predict(reached, items)[0] for items in (query, changed))
        differs = (before - after).abs().amax(2) > 1e-12
        others = batch_norm == "transductive"
        assert differs.tolist() == [[others, others, True, others], [False] * 4]
        alone = torch.cat([learner.predict(reached, query[:, item : item + 1])[0] for item in range(4)], dim=1)
        assert torch.allclose(alone, before) == (not others)


def test_adaptation_lets_support_items_see_each_other_and_no_query_item():
    learner = learner_of("stride", "inductive")
    experience, params = given(learner), moved(learner)
    changed = Examples(inputs=experience.supports[0].inputs.clone(), targets=experience.supports[0].targets)
    changed.inputs[0, 0] += 1
    state = learner.begin(params, experience.descriptors)
    before, after = (learner.adapt(state, support) for support in (experience.supports[0], changed))
    said = [learner.predict(reached, experience.query.inputs)[0] for reached in (before, after)]
    assert not torch.isclose(said[0][0], said[1][0]).any()
    assert torch.equal(said[0][1], said[1][1])
