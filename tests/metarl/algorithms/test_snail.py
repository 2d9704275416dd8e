"""SNAIL: its blocks by hand and against convolutions, causality, the meta-gradient, and learning."""

import math
from dataclasses import replace
from operator import itemgetter

import pytest
import torch
from support import synthetic
from support.synthetic import chosen, few_shot, initial
from torch import nn
from torch.nn import functional

from metarl.algorithms import snail
from metarl.algorithms.snail import SNAIL
from metarl.evaluation.scores import evaluate
from metarl.fewshot.classification import NWayKShot
from metarl.networks.options import Network
from metarl.outer.gradient import Adam
from metarl.training.settings import Settings
from metarl.training.start import train
from metarl.types import Spec, each_tensor

pytestmark = pytest.mark.usefixtures("float64")

CLASSIFICATION, REGRESSION = Spec((3,), 4, "classification"), Spec((3,), 2, "regression")
every_spec = pytest.mark.parametrize("spec", [CLASSIFICATION, REGRESSION], ids=lambda spec: spec.kind)
SMALL = SNAIL(
    length=6, channels=2, keys=(2, 3), values=(3, 2), embedding=2, network=Network(hidden=(3,), activation="tanh")
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def adapted(learner, params, given):
    state = learner.begin(params, given.descriptors)
    for support in given.supports:
        state = learner.adapt(state, support)
    return state


def outputs(learner, params, given):
    return learner.predict(adapted(learner, params, given), given.query.inputs)[0]


def test_a_dense_block_by_hand():
    """Of one channel: the value is the item before (at dilation 1), the gate half open."""
    params = {"block.weight": torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "block.bias": torch.zeros(2)}
    items = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    found = snail.dense(params, "block", items, 4, 1)
    expected = [[1.0, 0.0], *([item, math.tanh(item - 1) / 2] for item in (2.0, 3.0, 4.0))]
    torch.testing.assert_close(found, torch.tensor([expected]))
    two_rivals = snail.dense(params, "block", items, 2, 2)
    expected = [[1.0, 0.0], [2.0, 0.0], [3.0, math.tanh(1) / 2], [4.0, math.tanh(1) / 2]]
    torch.testing.assert_close(two_rivals, torch.tensor([expected]))


def test_attention_by_hand():
    """Keys are the items, queries are sqrt(4) ln 3 for all: items 0 and 1 weigh as 1 and 3 where both are seen."""
    params = {f"block.{part}.{kind}": torch.zeros(4, 1) for part in ("key", "query") for kind in ("weight",)}
    params |= {"block.key.bias": torch.zeros(4), "block.query.bias": torch.tensor([2 * math.log(3), 0, 0, 0])}
    params["block.key.weight"][0] = 1
    params |= {"block.value.weight": torch.tensor([[10.0]]), "block.value.bias": torch.tensor([1.0])}
    items = torch.tensor([[[0.0], [1.0], [1.0], [0.0]]])
    found = snail.attend(params, "block", items, 2)
    # Item 2 sees 0, 1 and itself; item 3, its rival, sees 0, 1 and itself.
    expected = [[0, 1.0], [1, 1 + 10 * 3 / 4], [1, 1 + 10 * 6 / 7], [0, 1 + 10 * 3 / 5]]
    torch.testing.assert_close(found, torch.tensor([expected]))


def causal_block(params, name, items, dilation):
    """A dense block on one sequence ``[task, item, channel]``, by torch's convolution."""
    past, present = params[f"{name}.weight"].chunk(2, dim=1)
    padded = functional.pad(items.mT, (dilation, 0))
    both = functional.conv1d(padded, torch.stack([past, present], 2), params[f"{name}.bias"], dilation=dilation)
    value, gate = both.mT.chunk(2, dim=2)
    return torch.cat([items, value.tanh() * gate.sigmoid()], dim=2)


def causal_attention(params, name, items):
    key, query, value = (
        items @ params[f"{name}.{part}.weight"].T + params[f"{name}.{part}.bias"] for part in ("key", "query", "value")
    )
    logits = query @ key.mT / key.shape[2] ** 0.5
    later = torch.ones(logits.shape[1:]).triu(1).bool()
    return torch.cat([items, logits.masked_fill(later, -torch.inf).softmax(2) @ value], dim=2)


def one_sequence(params, support, inputs, told):
    """SNAIL on the support items and one more, ``[task, 1, *input_shape]``, with plain layers all the way."""
    items = torch.cat([support.inputs, inputs], dim=1)
    hidden = functional.linear(items.flatten(2), params["embedding.hidden_0.weight"], params["embedding.hidden_0.bias"])
    hidden = functional.linear(hidden.tanh(), params["embedding.head.weight"], params["embedding.head.bias"])
    hidden = torch.cat([hidden, torch.cat([told, torch.zeros_like(told[:, :1])], dim=1)], dim=2)
    hidden = causal_attention(params, "attention_0", hidden)
    for block, dilation in enumerate((1, 2, 4)):
        hidden = causal_block(params, f"convolution_1.{block}", hidden, dilation)
    hidden = causal_attention(params, "attention_1", hidden)
    return hidden[:, -1] @ params["output.weight"].T + params["output.bias"]


@every_spec
def test_every_query_item_is_the_last_of_a_causal_sequence_and_has_no_label(spec):
    learner = SMALL.build(spec)
    params, given = initial(learner), few_shot(spec)
    support = given.supports[0]
    if spec.kind == "classification":
        told = functional.one_hot(support.targets, 4).double()
    else:
        told = functional.pad(support.targets, (0, 1), value=1.0)
    expected = [one_sequence(params, support, one.unsqueeze(1), told) for one in given.query.inputs.unbind(1)]
    torch.testing.assert_close(outputs(learner, params, given), torch.stack(expected, dim=1))


def test_blocks_are_causal():
    """What a block says of an item changes with that item and with earlier ones, and with nothing later."""
    learner = SMALL.build(CLASSIFICATION)
    params, items = initial(learner), torch.randn(2, 7, 6, generator=generator(3))

    def run(items):
        hidden = snail.attend(params, "attention_0", items, 5)
        for block, dilation in enumerate((1, 2, 4)):
            hidden = snail.dense(params, f"convolution_1.{block}", hidden, 5, dilation)
        return snail.attend(params, "attention_1", hidden, 5)

    before = run(items)
    for item in range(7):
        moved = items.clone()
        moved[:, item] += 1
        changed = ((run(moved) - before).abs() > 1e-12).any(2).all(0)
        expected = [item <= other < 7 if item < 5 else other == item for other in range(7)]
        assert changed.tolist() == expected


@pytest.mark.parametrize(("length", "dilations"), [(2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (26, 5), (33, 6)])
def test_dilations_double_until_they_span_the_sequence(length, dilations):
    params = SNAIL(length=length, keys=(2, 2, 2), values=(2, 2, 2), channels=1).build(REGRESSION).init(generator())
    for number in (1, 2):
        assert len([name for name in params if name.startswith(f"convolution_{number}.")]) == 2 * dilations


def test_widths_are_the_papers():
    """64 of the embedding, 5 of the label; 32, 128 and 256 by attention, 128 by each of a convolution's 3 blocks."""
    params = SNAIL(length=6).build(Spec((784,), 5, "classification")).init(generator())
    first, last = 64 + 5 + 32, 64 + 5 + 32 + 3 * 128 + 128 + 3 * 128
    assert params["attention_0.key.weight"].shape == (64, 69)
    assert params["convolution_1.0.weight"].shape == (256, 2 * first)
    assert params["convolution_1.2.weight"].shape == (256, 2 * (first + 256))
    assert params["attention_2.query.weight"].shape == (512, last)
    assert params["output.weight"].shape == (5, last + 256)


@every_spec
def test_meta_gradient_matches_finite_differences(spec):
    learner = SMALL.build(spec)
    params, given = initial(learner), few_shot(spec, tasks=2, items=4)
    values = tuple(value.requires_grad_() for value in params.values())

    def meta_loss(*values):
        return learner.meta_loss(dict(zip(params, values, strict=True)), given)[0].mean()

    assert torch.autograd.gradcheck(meta_loss, values)


@every_spec
def test_batched_equals_a_loop_over_tasks(spec):
    learner = SMALL.build(spec)
    params, given = initial(learner), few_shot(spec)
    apart = [chosen(given, slice(task, task + 1)) for task in range(3)]
    found = torch.cat([outputs(learner, params, one) for one in apart])
    torch.testing.assert_close(outputs(learner, params, given), found)
    losses = torch.stack([learner.meta_loss(params, one)[0].mean() for one in apart])
    torch.testing.assert_close(learner.meta_loss(params, given)[0].mean(), losses.mean())


def test_permuting_tasks_permutes_outputs():
    learner = SMALL.build(CLASSIFICATION)
    params, given, order = initial(learner), few_shot(CLASSIFICATION), torch.tensor([2, 0, 1])
    permuted = chosen(given, order)
    torch.testing.assert_close(outputs(learner, params, permuted), outputs(learner, params, given)[order])
    torch.testing.assert_close(learner.meta_loss(params, permuted)[0], learner.meta_loss(params, given)[0][order])


def normalised(batch_norm):
    network = Network("conv4", filters=2, downsample="pool", batch_norm=batch_norm)
    return SNAIL(length=4, channels=2, keys=(2, 2), values=(2, 2), embedding=2, network=network)


IMAGES = Spec((1, 16, 16), 4, "classification")
EMBEDDERS = {"mlp": (SMALL, CLASSIFICATION)}
EMBEDDERS |= {kind: (normalised(kind), IMAGES) for kind in ("transductive", "inductive")}
every_embedder = pytest.mark.parametrize("name", EMBEDDERS)


@every_embedder
def test_changing_the_support_of_a_task_changes_no_other(name):
    algorithm, spec = EMBEDDERS[name]
    learner = algorithm.build(spec)
    params, given = initial(learner), few_shot(spec)
    before = outputs(learner, params, given)
    given.supports[0].inputs[1] *= -1
    given.supports[0].targets[1] = (given.supports[0].targets[1] + 1) % 4
    after = outputs(learner, params, given)
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], rtol=1e-12, atol=1e-12)
    assert (after[1] != before[1]).all()


@every_embedder
def test_query_items_see_each_other_by_transductive_batch_norm_alone(name):
    algorithm, spec = EMBEDDERS[name]
    learner = algorithm.build(spec)
    params, given = initial(learner), few_shot(spec)
    state = adapted(learner, params, given)
    before, after_asking = learner.predict(state, given.query.inputs)
    inputs = given.query.inputs.clone()
    inputs[:, 2] += torch.randn(spec.input_shape, generator=generator(3))
    after, _ = learner.predict(after_asking, inputs)
    others = [0, 1, 3, 4]
    assert torch.allclose(after[:, others], before[:, others], rtol=1e-12, atol=1e-12) == (name != "transductive")
    assert (after[:, 2] != before[:, 2]).all()


@pytest.mark.parametrize("batch_norm", ["transductive", "inductive"])
def test_batch_norm_is_told(batch_norm):
    assert normalised(batch_norm).build(IMAGES).batch_norm == batch_norm
    assert SMALL.build(CLASSIFICATION).batch_norm is None


@every_spec
def test_any_number_of_item_axes(spec):
    learner = SMALL.build(spec)
    params, given = initial(learner), few_shot(spec)
    state = adapted(learner, params, given)
    found = learner.predict(state, given.query.inputs[:, :4])[0]
    folded = learner.predict(state, given.query.inputs[:, :4].reshape(3, 2, 2, 3))[0]
    torch.testing.assert_close(folded, found.reshape(3, 2, 2, spec.output_size))


def test_showing_items_in_two_batches_is_showing_them_in_one():
    learner = SMALL.build(CLASSIFICATION)
    params, given = initial(learner), few_shot(CLASSIFICATION)
    parts = tuple(each_tensor(itemgetter((slice(None), part)), given.supports[0]) for part in (slice(2), slice(2, 5)))
    torch.testing.assert_close(
        outputs(learner, params, replace(given, supports=parts)), outputs(learner, params, given)
    )


def test_more_items_than_the_convolutions_span_and_none_at_all():
    learner = SMALL.build(CLASSIFICATION)
    params = initial(learner)
    assert outputs(learner, params, few_shot(CLASSIFICATION, items=20)).isfinite().all()
    assert outputs(learner, params, replace(few_shot(CLASSIFICATION), supports=())).isfinite().all()


def test_the_meta_loss_is_of_the_query_items():
    learner = SMALL.build(CLASSIFICATION)
    params, given = initial(learner), few_shot(CLASSIFICATION)
    loss, metrics = learner.meta_loss(params, given)
    found = outputs(learner, params, given)
    expected = nn.functional.cross_entropy(found.flatten(0, 1), given.query.targets.flatten())
    torch.testing.assert_close(loss.mean(), expected)
    torch.testing.assert_close(metrics["loss/step_1"].mean(), expected)
    hits = (found.argmax(-1) == given.query.targets).double().mean()
    torch.testing.assert_close(metrics["accuracy/step_1"].mean(), hits)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_control_is_refused(kind):
    with pytest.raises(
        ValueError, match="SNAIL learns from labelled examples here; for control, use rl2, which also has a memory"
    ):
        SNAIL().build(Spec((3,), 2, kind))


def test_rollouts_are_refused():
    learner = SMALL.build(CLASSIFICATION)
    state = learner.begin(initial(learner), torch.zeros(2, 0))
    with pytest.raises(ValueError, match="expected labelled examples, but got a Rollout"):
        learner.adapt(state, synthetic.rollout(synthetic.DISCRETE, 2, generator()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": (2,), "values": (2, 2)}, "expected the same number of each, at least 1"),
        ({"keys": (), "values": ()}, "expected the same number of each, at least 1"),
        ({"keys": (0,), "values": (2,)}, "sizes of at least 1"),
        ({"channels": 0}, "sizes of at least 1"),
        ({"embedding": 0}, "sizes of at least 1"),
        ({"length": 1}, "length=1.*: expected a length of at least 2"),
        ({"first_weights": "zero"}, "first_weights='zero': expected similarity or glorot"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SNAIL(**options)


@pytest.mark.parametrize("spec", [CLASSIFICATION, REGRESSION], ids=lambda spec: spec.kind)
def test_attention_begins_by_similarity(spec):
    """Queries begin as keys; labels are as heavy in values as a whole embedding; nothing else differs."""
    options = replace(SMALL, embedding=9)
    ways = (replace(options, first_weights=way).build(spec) for way in ("similarity", "glorot"))
    found, drawn = (learner.init(generator()) for learner in ways)
    width = 4 if spec.kind == "classification" else 3  # of a label: 4 classes, or 2 values and a 1
    assert found.keys() == drawn.keys()
    for name, value in found.items():
        expected = drawn[name].clone()
        if name.endswith("query.weight"):
            expected = drawn[name.replace("query", "key")]
        if name.endswith("value.weight"):
            expected[:, 9 : 9 + width] *= 3
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
    keys, queries = (found[f"attention_0.{part}.weight"] for part in ("key", "query"))
    assert keys.data_ptr() != queries.data_ptr(), "they part in training"


def test_an_item_first_attends_to_those_like_it():
    """Of four items with embeddings of their own and a query that is one of them again."""
    learner = replace(SMALL, embedding=16, keys=(512, 3)).build(Spec((16,), 4, "classification"))
    params = learner.init(generator())
    own = torch.eye(4, 16) * 4
    items = torch.cat([torch.cat([own, torch.eye(4)], 1), torch.cat([own, torch.zeros(4, 4)], 1)]).unsqueeze(0)
    key, query = (functional.linear(items, params[f"attention_0.{part}.weight"]) for part in ("key", "query"))
    nearest = (query @ key.mT)[0, 4:, :4].argmax(1)
    assert nearest.tolist() == [0, 1, 2, 3]


def test_it_learns_from_what_it_was_told():
    """Two of a hundred patterns are called 0 and 1, anew for each task."""
    torch.set_default_dtype(torch.float32)
    rng, labels = generator(3), torch.arange(100).repeat_interleave(10)
    inputs = torch.randn(100, 4, generator=rng)[labels] + 0.1 * torch.randn(1000, 4, generator=rng)
    family = NWayKShot(inputs.float(), labels, ways=2, shots=3, queries=1, test_queries=2)
    algorithm = SNAIL(length=7, channels=16, keys=(16, 16), values=(16, 16), embedding=16, network=Network(hidden=()))
    settings = Settings(iterations=100, meta_batch_size=32, device="cpu")
    result = train(algorithm, family, Adam(learning_rate=0.003), settings)
    accuracy = evaluate(result.learner, result.params, family, tasks=200, steps=1).scores["accuracy"].mean(1)
    assert abs(accuracy[0] - 0.5) < 0.15  # four standard errors: a task is all right or all wrong
    assert accuracy[1] > 0.9
