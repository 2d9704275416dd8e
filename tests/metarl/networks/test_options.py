"""Network options: the fully connected Omniglot network, whose statistics batch norm uses, networks without a head."""

import json
from dataclasses import replace

import pytest
import torch
from support import synthetic
from torch import nn
from torch.nn import functional

from metarl.algorithms.maml import MAML
from metarl.algorithms.protonet import ProtoNet
from metarl.cli import main
from metarl.networks.options import Network
from metarl.types import Experience, Spec

IMAGE = Spec((1, 28, 28), 5, "classification")
OMNIGLOT = Network(hidden=(256, 128, 64, 64), normalise=True)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": 0.0}, "must be positive"),
        ({"output_scale": 0.0}, "output_scale=0.0 must be positive"),
        ({"std": float("nan")}, "must be positive"),
        ({"hidden": (0,)}, "widths are at least 1"),
        ({"filters": 0}, "widths are at least 1"),
        ({"activation": "elu"}, "activation='elu': expected one of tanh, relu"),
        ({"downsample": "mean"}, "downsample='mean': expected one of stride, pool"),
        ({"batch_norm": "running"}, "batch_norm='running': expected one of transductive, inductive"),
        ({"architecture": "conv5"}, "architecture='conv5': expected mlp, conv4, resnet12 or module:attribute"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Network(**options)


# The MAML paper's fully connected network for Omniglot


def test_names_shapes_and_initial_values_of_the_omniglot_perceptron():
    params = OMNIGLOT.build(IMAGE).init(generator())
    assert {name: tuple(value.shape) for name, value in params.items()} == {
        "hidden_0.weight": (256, 784),
        "hidden_0.bias": (256,),
        "norm_0.weight": (256,),
        "norm_0.bias": (256,),
        "hidden_1.weight": (128, 256),
        "hidden_1.bias": (128,),
        "norm_1.weight": (128,),
        "norm_1.bias": (128,),
        "hidden_2.weight": (64, 128),
        "hidden_2.bias": (64,),
        "norm_2.weight": (64,),
        "norm_2.bias": (64,),
        "hidden_3.weight": (64, 64),
        "hidden_3.bias": (64,),
        "norm_3.weight": (64,),
        "norm_3.bias": (64,),
        "head.weight": (5, 64),
        "head.bias": (5,),
    }
    for layer in ("hidden_0", "hidden_1", "hidden_2", "hidden_3", "head"):
        weight = params[f"{layer}.weight"]
        # A normal distribution that is cut off at two deviations keeps 0.88 of its deviation.
        assert weight.std().item() == pytest.approx(0.0088, rel=0.1)
        assert weight.abs().max() <= 0.02
        assert not params[f"{layer}.bias"].any()
    assert all((params[f"norm_{layer}.weight"] == 1).all() for layer in range(4))
    assert not any(params[f"norm_{layer}.bias"].any() for layer in range(4))


def perceptron(own, images):
    """The same of one task: linear, batch norm over its items, ReLU."""
    reached = images.flatten(1)
    for layer in range(4):
        reached = functional.linear(reached, own[f"hidden_{layer}.weight"], own[f"hidden_{layer}.bias"])
        variance, mean = torch.var_mean(reached, 0, correction=0)
        reached = (reached - mean) / (variance + 1e-3).sqrt() * own[f"norm_{layer}.weight"] + own[f"norm_{layer}.bias"]
        reached = reached.relu()
    return functional.linear(reached, own["head.weight"], own["head.bias"])


def test_the_omniglot_perceptron_equals_a_loop_over_tasks(float64):
    torch.set_num_threads(1)
    model, rng = OMNIGLOT.build(IMAGE), generator(1)
    single = model.init(generator())
    params = {
        name: (value + 0.02 * torch.randn(3, *value.shape, generator=rng)).requires_grad_()
        for name, value in single.items()
    }
    images = torch.rand(3, 6, 1, 28, 28, generator=generator(2))
    found = model.apply(params, images)
    each = [perceptron({name: value[task] for name, value in params.items()}, images[task]) for task in range(3)]
    torch.testing.assert_close(found, torch.stack(each), rtol=1e-9, atol=1e-10)
    slopes, wanted = (
        torch.autograd.grad(outputs.square().sum(), list(params.values()), create_graph=True)
        for outputs in (found, torch.stack(each))
    )
    torch.testing.assert_close(slopes, wanted, rtol=1e-7, atol=1e-8)
    curvatures, wanted = (
        torch.autograd.grad(sum(one.square().sum() for one in some), list(params.values())) for some in (slopes, wanted)
    )
    largest = max(float(value.abs().max()) for value in wanted)
    torch.testing.assert_close(curvatures, wanted, rtol=1e-6, atol=1e-9 * largest)


@pytest.mark.parametrize("batch_norm", ["transductive", "inductive"])
@pytest.mark.parametrize("steps", [1, 2])
def test_meta_gradients_through_batch_norm_match_finite_differences(batch_norm, steps, float64):
    network = Network(hidden=(3, 3), activation="tanh", normalise=True, batch_norm=batch_norm)
    learner = MAML(steps=steps, step_size=0.3, network=network).build(Spec((2,), 3, "classification"))
    rng = generator(1)
    params = {name: value + 0.3 * torch.randn(value.shape, generator=rng) for name, value in learner.init(rng).items()}
    given = synthetic.experience(learner, params)
    values = tuple(value.requires_grad_() for value in params.values())

    def meta_loss(*values):
        return learner.meta_loss(dict(zip(params, values, strict=True)), given)[0].mean()

    assert torch.autograd.gradcheck(meta_loss, values, atol=1e-5)


# Whose statistics batch norm uses


def test_by_default_batch_norm_is_transductive_and_learners_say_so():
    for batch_norm in ("transductive", "inductive"):
        for kind in (MAML, ProtoNet):
            assert kind(network=Network("conv4", batch_norm=batch_norm)).build(IMAGE).batch_norm == batch_norm
    assert MAML(network=OMNIGLOT).build(IMAGE).batch_norm == "transductive"
    assert MAML(network=Network(batch_norm="inductive")).build(IMAGE).batch_norm is None


def normalised(spec):
    return nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, spec.model_outputs)
    )


class Hidden(nn.Module):
    """Batch norm inside a module that runs as a whole."""

    def __init__(self, spec):
        super().__init__()
        self.inner = normalised(spec)

    def forward(self, inputs):
        return self.inner(inputs)


def test_where_batch_norm_cannot_be_inductive():
    vector = Spec((3,), 4, "classification")
    assert Network(Hidden).build(vector).batch_norm == "transductive"
    with pytest.raises(ValueError, match=r"inductive batch norm needs .* directly in an nn.Sequential"):
        Network(Hidden, batch_norm="inductive").build(vector)


@pytest.mark.parametrize(
    ("network", "spec"),
    [
        (Network(normalised), Spec((3,), 4, "discrete")),
        (Network(normalised, batch_norm="inductive"), Spec((3,), 4, "discrete")),
        (Network(Hidden), Spec((3,), 4, "discrete")),
        (Network(hidden=(8,), normalise=True), Spec((3,), 4, "discrete")),
        (Network(hidden=(8,), normalise=True), Spec((3,), 2, "continuous")),
    ],
)
def test_policies_have_no_batch_norm(network, spec):
    with pytest.raises(ValueError, match=r"batch norm makes an action depend on .* nn\.LayerNorm") as caught:
        network.build(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
@pytest.mark.parametrize(
    "network",
    [Network("conv4", filters=4), Network("conv4", filters=4, downsample="pool"), Network("resnet12", filters=2)],
)
def test_convolutional_policies_say_of_each_image_what_they_say_of_it_alone(network, kind, float64):
    """The importance ratio of a step, at the policy that acted, is 1: by batch norm it would not be."""
    model = network.build(Spec((2, 16, 16), 3, kind))
    assert model.batch_norm is None
    params = {name: value.unsqueeze(0) for name, value in model.init(generator()).items()}
    images = torch.rand(1, 2, 5, 2, 16, 16, generator=generator(1))
    whole = model.apply(params, images)
    each = torch.stack([model.apply(params, images[:, :, step]) for step in range(5)], dim=2)
    torch.testing.assert_close(whole, each, rtol=1e-9, atol=1e-11)
    assert whole[0, 0].std(0)[:3].min() > 1e-4, "images are told apart"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"filters": 32}, "filters=32: mlp does not read that; of a network's options it reads hidden, activation,"),
        ({"downsample": "pool"}, "downsample='pool': mlp does not read that"),
        ({"architecture": "conv4", "hidden": (8,)}, r"hidden=\(8,\): conv4 does not read that; .* filters, downsample"),
        (
            {"architecture": "conv4", "normalise": True, "activation": "tanh"},
            "activation='tanh', normalise=True: co",
        ),
        ({"architecture": "resnet12", "downsample": "pool"}, "downsample='pool': resnet12 does not read that"),
        ({"architecture": Hidden, "std": 0.5}, "std=0.5: a network of one's own does not read that; .* batch_norm"),
        ({"architecture": "somewhere:made", "hidden": (8,)}, "a network of one's own does not read that"),
    ],
)
def test_options_that_the_architecture_does_not_read_are_refused(options, told):
    with pytest.raises(ValueError, match=told) as caught:
        Network(**options)
    assert "\n" not in str(caught.value)


def test_statistics_of_support_items_by_hand(float64):
    """One feature: support 1 and 3 have the mean 2 and the variance 1; query 4 and 8 the mean 6 and the variance 4."""
    spec, rows = Spec((1,), 2, "classification"), (torch.tensor([[[1.0], [3.0]]]), torch.tensor([[[4.0], [8.0]]]))
    said = {}
    for batch_norm in ("transductive", "inductive"):
        learner = ProtoNet(embedding=1, network=Network(lambda _: only_norm(), batch_norm=batch_norm)).build(spec)
        maml = MAML(step_size=1e-9, network=Network(lambda _: norm_and_head(), batch_norm=batch_norm)).build(spec)
        support = synthetic.Examples(inputs=rows[0], targets=torch.tensor([[0, 1]]))
        state = maml.adapt(maml.begin(maml.init(generator()), torch.zeros(1, 0)), support)
        said[batch_norm] = maml.predict(state, rows[1])[0][0, :, 0].tolist()
        given = Experience(descriptors=torch.zeros(1, 0), supports=(support,), query=replace(support, inputs=rows[1]))
        said[f"{batch_norm}, metric"] = learner.meta_loss(learner.init(generator()), given)[0].mean().item()
    assert said["transductive"] == pytest.approx([-1, 1])
    assert said["inductive"] == pytest.approx([2, 6])
    # Embeddings: by the support's statistics -1, 1 and 2, 6; by those of all four (mean 4, variance 26 / 4) as a whole.
    assert said["inductive, metric"] == pytest.approx(cross_entropy([-1, 1], [2, 6]))
    scale = (26 / 4) ** 0.5
    assert said["transductive, metric"] == pytest.approx(cross_entropy([-3 / scale, -1 / scale], [0, 4 / scale]))


def cross_entropy(support, query):
    """Of the classes 0 and 1, of one item each, by squared distances."""
    distances = torch.tensor([[-((one - other) ** 2.0) for other in support] for one in query])
    return functional.cross_entropy(distances, torch.tensor([0, 1])).item()


def only_norm():
    return nn.Sequential(nn.BatchNorm1d(1, eps=0.0, track_running_stats=False))


def norm_and_head():
    """Says the normalised feature of class 0, and nothing of class 1."""
    head = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0], [0.0]]))
    return nn.Sequential(nn.BatchNorm1d(1, eps=0.0, track_running_stats=False), head)


MODULE = """
import torch

from metarl import NWayKShot

pixels = torch.rand(120, 1, 16, 16, generator=torch.Generator().manual_seed(0))
images = NWayKShot(pixels, torch.arange(120) % 12, ways=2)
"""


def test_every_evaluation_tells_how_batch_norm_was_used(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_images.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    options = ["--iterations", "2", "--meta-batch-size", "2", "--quiet", "--algorithm.filters", "2"]
    for algorithm in ("maml", "protonet"):
        train = ["train", algorithm, "my_images:images", "--algorithm.architecture", "conv4", "--out", algorithm]
        assert main([*train, *options]) == 0
        capsys.readouterr()
        for asked, told in (([], "transductive"), (["--algorithm.batch-norm", "inductive"], "inductive")):
            assert main(["evaluate", algorithm, "--tasks", "4", "--split", "train", *asked]) == 0
            assert f"\nbatch norm: {told}\n" in capsys.readouterr().out
            assert json.loads((tmp_path / algorithm / "evaluation.json").read_text())["batch_norm"] == told


# Networks without their last layer


@pytest.mark.parametrize(
    ("network", "width"),
    [
        (Network(hidden=(7, 6)), 6),
        (Network("conv4", filters=3), 3),
        (Network("conv4", filters=3, downsample="pool"), 3),
        (Network("resnet12", filters=2), 16),
    ],
    ids=str,
)
def test_features_are_what_the_head_reads(network, width):
    model, found = network.build_features(IMAGE)
    whole = network.build(IMAGE)
    params = {name: value.unsqueeze(0) for name, value in whole.init(generator()).items()}
    images = torch.rand(1, 4, 1, 28, 28, generator=generator(1))
    features = model.apply({name: value for name, value in params.items() if not name.startswith("head")}, images)
    assert (features.shape, found) == ((1, 4, width), width)
    expected = functional.linear(features, params["head.weight"][0], params["head.bias"][0])
    torch.testing.assert_close(whole.apply(params, images), expected)


def test_features_need_a_head_and_fitting_inputs():
    with pytest.raises(ValueError, match="the network has no layer called head that could be left out"):
        Network(normalised).build_features(Spec((3,), 4, "classification"))
    with pytest.raises(ValueError, match=r"conv4 reads images .*, not inputs of shape \(3,\)"):
        Network("conv4").build_features(Spec((3,), 4, "classification"))
    with pytest.raises(ValueError, match=r"the network cannot run on inputs of shape \(5,\)"):
        Network(headed).build_features(Spec((5,), 4, "classification"))


def headed(spec):
    network = nn.Sequential()
    network.add_module("first", nn.Linear(3, 4))
    network.add_module("head", nn.Linear(4, spec.model_outputs))
    return network


@pytest.mark.parametrize("architecture", ["mlp", "conv4", "resnet12"])
@pytest.mark.parametrize("kind", ["continuous", "regression"])
def test_a_small_output_layer_begins_with_a_factor_of_its_weights(architecture, kind):
    sizes = {"filters": 4} if architecture != "mlp" else {"hidden": (6,)}
    spec = Spec((3, 16, 16), 2, kind)
    plain, small = (Network(architecture, output_scale=scale, **sizes).build(spec) for scale in (1.0, 0.01))
    whole, scaled = (model.init(torch.Generator().manual_seed(4)) for model in (plain, small))
    for name, value in whole.items():
        expected = 0.01 * value if name == "head.weight" else value
        torch.testing.assert_close(scaled[name], expected, rtol=1e-6, atol=0)
    inputs = torch.rand(1, 5, 3, 16, 16)
    outputs = [model.apply({name: value.unsqueeze(0) for name, value in params.items()}, inputs)[..., :2]
               for model, params in ((plain, whole), (small, scaled))]  # fmt: skip
    torch.testing.assert_close(outputs[1], 0.01 * outputs[0], rtol=1e-3, atol=1e-6)


def test_features_have_no_output_layer_to_scale():
    with pytest.raises(ValueError, match=r"output_scale=0\.1: there is no last layer here"):
        Network(output_scale=0.1).build_features(Spec((3,), 5, "classification"))
