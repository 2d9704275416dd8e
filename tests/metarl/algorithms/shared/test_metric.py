"""Metric learners: numbers by hand, meta-gradients against finite differences, tasks that do not meet, and learning."""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch
from support import synthetic
from torch import nn

from metarl.algorithms import matching
from metarl.algorithms.matching import Matching
from metarl.algorithms.protonet import ProtoNet
from metarl.algorithms.siamese import Siamese
from metarl.evaluation.scores import evaluate
from metarl.fewshot.classification import NWayKShot
from metarl.networks.options import Network
from metarl.outer.gradient import Adam
from metarl.training.settings import Settings
from metarl.training.start import train
from metarl.types import Examples, Experience, Spec, each_tensor, pooled

pytestmark = pytest.mark.usefixtures("float64")

SPEC = Spec((3,), 4, "classification")
SMALL = {"embedding": 4, "network": Network(hidden=(5,), activation="tanh")}


def batch_normalised(spec):
    norm = nn.BatchNorm1d(5, track_running_stats=False)
    return nn.Sequential(nn.Linear(3, 5), norm, nn.Tanh(), nn.Linear(5, spec.output_size))


ALGORITHMS = {
    "protonet": ProtoNet(**SMALL),
    "protonet, cosine": ProtoNet("cosine", **SMALL),
    "matching": Matching(**SMALL),
    "matching, full context": Matching(full_context=True, reads=3, **SMALL),
    "matching, the paper's form": Matching(scale=1.0, **SMALL),
    "matching, learned scale": Matching(learn_scale=True, **SMALL),
    "siamese": Siamese(**SMALL),
    "protonet, batch norm": ProtoNet(embedding=4, network=Network(batch_normalised)),
    "matching, inductive batch norm": Matching(
        full_context=True, reads=2, embedding=4, network=Network(batch_normalised, batch_norm="inductive")
    ),
}
every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def initial(learner):
    return learner.init(generator(1))


def experience(tasks=3, items=7):
    """Support sets in which classes have different numbers of items, and each at least one."""
    rng = generator()
    support, query = (synthetic.examples(SPEC, tasks, rng, items) for _ in range(2))
    support.targets[:, :4] = torch.arange(4)
    return Experience(descriptors=torch.zeros(tasks, 0), supports=(support,), query=query)


def outputs(learner, params, given, *more):
    state = learner.begin(params, given.descriptors)
    for support in (*given.supports, *more):
        state = learner.adapt(state, support)
    return learner.predict(state, given.query.inputs)[0]


def plain(algorithm, ways=2):
    """The learner of an algorithm whose embedding is the input itself, and its parameters."""
    learner = algorithm.build(Spec((algorithm.embedding,), ways, "classification"))
    params = learner.init(generator())
    return learner, params | {"head.weight": torch.eye(algorithm.embedding), "head.bias": torch.zeros(1)}


LINEAR = {"embedding": 2, "network": Network(hidden=())}


def by_hand(algorithm, support, targets, query):
    learner, params = plain(algorithm)
    given = Examples(inputs=torch.tensor([support]), targets=torch.tensor([targets]))
    state = learner.adapt(learner.begin(params, torch.zeros(1, 0)), given)
    return learner.predict(state, torch.tensor([query]))[0][0]


def test_prototypes_by_hand():
    """The prototypes are (1, 0), of two items, and (0, 3): at squared distances of 1 and 5 from (1, 1)."""
    found = by_hand(ProtoNet(**LINEAR), [[0.0, 0.0], [0.0, 3.0], [2.0, 0.0]], [0, 1, 0], [[1.0, 1.0], [0.0, 3.0]])
    expected = [[-math.log(1 + math.exp(-4)), -4 - math.log(1 + math.exp(-4))], [-10.0, 0.0]]
    torch.testing.assert_close(found[0], torch.tensor(expected[0]))
    torch.testing.assert_close(found[1], torch.tensor(expected[1]), atol=1e-4, rtol=0)


def test_cosines_to_prototypes_by_hand():
    """(3, 4) is at cosines of 0.6 and 0.8 from the prototypes (1, 0) and (0, 3)."""
    found = by_hand(ProtoNet("cosine", **LINEAR), [[0.0, 0.0], [0.0, 3.0], [2.0, 0.0]], [0, 1, 0], [[3.0, 4.0]])
    expected = [[-math.log(1 + math.exp(0.2)), -math.log(1 + math.exp(-0.2))]]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize(
    ("options", "scale"), [({}, 10), ({"scale": 1.0}, 1), ({"scale": 3.0, "learn_scale": True}, 3)], ids=str
)
def test_attention_by_hand(options, scale):
    """(3, 4) attends to cosines of 0.6, 0.6 and 0.8, of which the first two are of class 0, times the scale."""
    found = by_hand(Matching(**LINEAR, **options), [[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]], [0, 0, 1], [[3.0, 4.0]])
    share = 2 / (2 + math.exp(0.2 * scale))
    torch.testing.assert_close(found.exp(), torch.tensor([[share, 1 - share]]))


def test_only_a_learned_scale_is_a_parameter_and_it_is_positive():
    learners = [Matching(learn_scale=told, **SMALL).build(SPEC) for told in (False, True)]
    fixed, learned = (initial(learner) for learner in learners)
    assert learned.keys() - fixed.keys() == {"scale:log"}
    given = experience()
    torch.testing.assert_close(outputs(learners[1], learned, given), outputs(learners[0], fixed, given))
    # A scale that falls to nothing makes all support items alike, and never turns them round.
    gone = outputs(learners[1], learned | {"scale:log": torch.tensor(-50.0)}, given)
    shares = nn.functional.one_hot(given.supports[0].targets, 4).double().mean(1, keepdim=True)
    torch.testing.assert_close(gone.exp(), shares.expand(3, 7, 4))


def test_full_context_reads_by_hand():
    """An LSTM of one cell, whose candidate is what was read, and whose gates are all half open.

    The first read is of the mean of 0 and ln 3, whose tanh is 1/2; it makes the state 1, to which the items' attention
    is 1/4 and 3/4 in the second.
    """
    weight, bias = torch.zeros(4, 3), torch.zeros(4)
    weight[2, 2] = 1
    params = {"lstm:attending.weight": weight, "lstm:attending.bias": bias}
    query, support = torch.tensor([[[1 - 0.5 * math.tanh(0.25)]]]), torch.tensor([[[0.0], [math.log(3)]]])
    once, twice = (matching.embed_query(params, query, support, reads).item() for reads in (1, 2))
    assert once == pytest.approx(1)
    cell = 0.5 * 0.25 + 0.5 * math.tanh(0.75 * math.log(3))
    assert twice == pytest.approx(1 - 0.5 * math.tanh(0.25) + 0.5 * math.tanh(cell))


def test_query_in_context_equals_a_loop_over_items():
    """Each query item by itself: the paper's equations 3 to 6."""
    learner = Matching(full_context=True, reads=3, **SMALL).build(SPEC)
    params, query, support = initial(learner), *(torch.randn(2, n, 4, generator=generator(n)) for n in (3, 5))
    weight, bias = params["lstm:attending.weight"], params["lstm:attending.bias"] + 0.1
    found = matching.embed_query(params | {"lstm:attending.bias": bias}, query, support, 3)
    for task in range(2):
        for item in range(3):
            hidden, kept = torch.zeros(4), torch.zeros(4)
            for _ in range(3):
                attention = torch.softmax(support[task] @ hidden, 0)
                told = torch.cat([hidden, attention @ support[task]])
                gates = weight[:, :4] @ query[task, item] + weight[:, 4:] @ told + bias
                admit, keep, candidate, show = gates.split(4)
                kept = keep.sigmoid() * kept + admit.sigmoid() * candidate.tanh()
                hidden = show.sigmoid() * kept.tanh() + query[task, item]
            torch.testing.assert_close(found[task, item], hidden)


def test_support_in_context_equals_a_bidirectional_lstm():
    learner = Matching(full_context=True, **SMALL).build(SPEC)
    params, items = initial(learner), torch.randn(3, 6, 4, generator=generator(2))
    reference, values = nn.LSTM(4, 4, bidirectional=True, batch_first=True), {}
    for name, end in (("forward", ""), ("backward", "_reverse")):
        weight = params[f"lstm:{name}.weight"]
        values |= {f"weight_ih_l0{end}": weight[:, :4], f"weight_hh_l0{end}": weight[:, 4:]}
        values |= {f"bias_ih_l0{end}": params[f"lstm:{name}.bias"] + 0.1, f"bias_hh_l0{end}": -0.1 * torch.ones(16)}
    reference.load_state_dict(values)
    forward, backward = reference(items)[0].chunk(2, dim=-1)
    torch.testing.assert_close(matching.embed_support(params, items), items + forward + backward)


def test_pairs_by_hand():
    """Sigmoids of 0, ln 3 and -ln 3 are 1/2, 3/4 and 1/4: the logits of the two pairs are 1 - 4/4 and 1 - 8/4."""
    learner, params = plain(Siamese(**LINEAR))
    params |= {"pair:weight": torch.tensor([-4.0, -8.0]), "pair:bias": torch.tensor(1.0)}
    support = Examples(inputs=torch.tensor([[[math.log(3), 0.0], [0.0, -math.log(3)]]]), targets=torch.tensor([[0, 1]]))
    query = Examples(inputs=torch.zeros(1, 1, 2), targets=torch.tensor([[0]]))
    given = Experience(descriptors=torch.zeros(1, 0), supports=(support,), query=query)
    loss, metrics = learner.meta_loss(params, given)
    assert loss.item() == pytest.approx((math.log(2) + math.log(1 + math.exp(-1))) / 2)
    assert metrics["loss/step_1"].item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert metrics["accuracy/step_1"].item() == 1
    torch.testing.assert_close(outputs(learner, params, given)[0, 0].diff(), torch.tensor([-1.0]))


def test_pairs_of_one_class_weigh_as_much_as_all_others():
    learner, params = plain(Siamese(**LINEAR))
    params |= {"pair:weight": torch.tensor([-4.0, -8.0]), "pair:bias": torch.tensor(1.0)}
    inputs = torch.tensor([[[math.log(3), 0.0], [0.0, -math.log(3)], [0.0, -math.log(3)]]])
    support, query = (
        Examples(inputs=inputs, targets=torch.tensor([[0, 1, 1]])),
        Examples(inputs=torch.zeros(1, 1, 2), targets=torch.tensor([[0]])),
    )
    loss = learner.meta_loss(params, Experience(descriptors=torch.zeros(1, 0), supports=(support,), query=query))[
        0
    ].mean()
    assert loss.item() == pytest.approx((math.log(2) + math.log(1 + math.exp(-1))) / 2)


def test_the_nearest_item_tells_the_class():
    """Not the nearest on average: class 0 has the nearest item and the farthest."""
    found = by_hand(Siamese(**LINEAR), [[0.1, 0.0], [9.0, 9.0], [0.5, 0.5]], [0, 0, 1], [[0.0, 0.0]])
    assert found.argmax(-1).tolist() == [0]


@every_algorithm
def test_outputs_are_log_probabilities(name):
    learner = ALGORITHMS[name].build(SPEC)
    found = outputs(learner, initial(learner), experience())
    assert found.shape == (3, 7, 4)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(3, 7))


@every_algorithm
def test_meta_gradient_matches_finite_differences(name):
    learner = ALGORITHMS[name].build(SPEC)
    params = initial(learner)
    values = tuple(value.requires_grad_() for value in params.values())

    def meta_loss(*values):
        return learner.meta_loss(dict(zip(params, values, strict=True)), experience())[0].mean()

    assert torch.autograd.gradcheck(meta_loss, values)


@every_algorithm
def test_the_meta_loss_is_that_of_the_outputs(name):
    learner = ALGORITHMS[name].build(SPEC)
    params, given = initial(learner), experience()
    loss, metrics = learner.meta_loss(params, given)
    found = outputs(learner, params, given)
    expected = nn.functional.cross_entropy(found.flatten(0, 1), given.query.targets.flatten())
    torch.testing.assert_close(metrics["loss/step_1"].mean(), expected)
    hits = (found.argmax(-1) == given.query.targets).double().mean()
    torch.testing.assert_close(metrics["accuracy/step_1"].mean(), hits)
    if name != "siamese":
        torch.testing.assert_close(loss.mean(), expected)


def task_of(given, task):
    def cut(examples):
        return each_tensor(lambda field: field[task : task + 1], examples)

    return Experience(
        descriptors=given.descriptors[task : task + 1], supports=(cut(given.supports[0]),), query=cut(given.query)
    )


@every_algorithm
def test_batched_equals_a_loop_over_tasks(name):
    learner = ALGORITHMS[name].build(SPEC)
    params, given = initial(learner), experience()
    apart = [task_of(given, task) for task in range(3)]
    found = outputs(learner, params, given)
    torch.testing.assert_close(found, torch.cat([outputs(learner, params, one) for one in apart]))
    loss = learner.meta_loss(params, given)[0].mean()
    torch.testing.assert_close(
        loss.mean(), torch.stack([learner.meta_loss(params, one)[0].mean() for one in apart]).mean()
    )


@every_algorithm
def test_permuting_the_tasks_permutes_the_results(name):
    learner = ALGORITHMS[name].build(SPEC)
    params, given, order = initial(learner), experience(), torch.tensor([2, 0, 1])

    def permuted(examples):
        return each_tensor(lambda field: field[order], examples)

    shuffled = replace(given, supports=(permuted(given.supports[0]),), query=permuted(given.query))
    found = outputs(learner, params, given)
    torch.testing.assert_close(outputs(learner, params, shuffled), found[order], rtol=1e-12, atol=1e-13)
    losses = [learner.meta_loss(params, one)[0].mean() for one in (given, shuffled)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=1e-13)


@every_algorithm
@pytest.mark.parametrize("changed", ["support inputs", "support targets", "query inputs"])
def test_what_one_task_is_shown_changes_no_other(name, changed):
    learner = ALGORITHMS[name].build(SPEC)
    params, given, other = initial(learner), experience(), experience()
    if changed == "support targets":
        other.supports[0].targets[1] = other.supports[0].targets[1].flip(0)
    else:
        (other.supports[0] if changed == "support inputs" else other.query).inputs[1] *= -2
    found, again = outputs(learner, params, given), outputs(learner, params, other)
    torch.testing.assert_close(found[[0, 2]], again[[0, 2]], rtol=1e-12, atol=1e-13)
    assert not torch.isclose(found[1], again[1]).all(-1).any()


@every_algorithm
def test_permuting_the_query_items_permutes_the_outputs(name):
    learner = ALGORITHMS[name].build(SPEC)
    params, given = initial(learner), experience()
    order = torch.tensor([6, 2, 0, 5, 1, 3, 4])
    permuted = replace(given, query=each_tensor(lambda field: field[:, order], given.query))
    found = outputs(learner, params, given)
    torch.testing.assert_close(outputs(learner, params, permuted), found[:, order], rtol=1e-12, atol=1e-13)


@every_algorithm
def test_permuting_the_support_items_changes_nothing_but_the_full_context(name):
    learner = ALGORITHMS[name].build(SPEC)
    params, given = initial(learner), experience()
    order = torch.tensor([6, 2, 0, 5, 1, 3, 4])
    permuted = replace(given, supports=(each_tensor(lambda field: field[:, order], given.supports[0]),))
    found, again = outputs(learner, params, given), outputs(learner, params, permuted)
    assert torch.allclose(found, again, rtol=1e-12) == (not getattr(ALGORITHMS[name], "full_context", False))


@every_algorithm
def test_adapting_again_to_the_same_items_changes_nothing(name):
    learner = ALGORITHMS[name].build(SPEC)
    params, given = initial(learner), experience()
    again = each_tensor(torch.clone, given.supports[0])
    assert torch.equal(outputs(learner, params, given), outputs(learner, params, given, again, given.supports[0]))


@every_algorithm
def test_further_items_are_pooled(name):
    learner = ALGORITHMS[name].build(SPEC)
    params, given = initial(learner), experience()
    further = synthetic.examples(SPEC, 3, generator(5), items=2)
    both = pooled([given.supports[0], further])
    found = outputs(learner, params, given, further)
    torch.testing.assert_close(found, outputs(learner, params, replace(given, supports=(both,))))
    assert not torch.allclose(found, outputs(learner, params, given))


@every_algorithm
def test_every_class_is_as_likely_before_anything_was_seen(name):
    learner = ALGORITHMS[name].build(SPEC)
    found = outputs(learner, initial(learner), replace(experience(), supports=()))
    assert found.shape == (3, 7, 4)
    assert not found.any()


@every_algorithm
def test_any_number_of_item_axes(name):
    learner = ALGORITHMS[name].build(SPEC)
    params, given = initial(learner), experience()
    state = learner.adapt(learner.begin(params, given.descriptors), given.supports[0])
    found, _ = learner.predict(state, given.query.inputs[:, :6])
    folded, _ = learner.predict(state, given.query.inputs[:, :6].reshape(3, 2, 1, 3, 3))
    torch.testing.assert_close(folded, found.reshape(3, 2, 1, 3, 4))


@every_algorithm
def test_a_class_that_was_not_shown_is_all_but_impossible(name):
    learner = ALGORITHMS[name].build(SPEC)
    params, given = initial(learner), experience()
    given.supports[0].targets[0] = 2
    found = outputs(learner, params, given)[0].exp()
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(7, 4))
    leaves = {key: value.requires_grad_() for key, value in params.items()}
    losses, _ = learner.meta_loss(leaves, given)
    gradients = torch.autograd.grad(losses.sum(), list(leaves.values()))
    assert losses.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients)


@every_algorithm
def test_training_may_take_more_ways_than_a_test(name):
    family = dataclasses.replace(clusters(), train_ways=8)
    algorithm = dataclasses.replace(ALGORITHMS[name], embedding=16, network=Network(hidden=()))
    settings = Settings(iterations=30, meta_batch_size=4, device="cpu")
    result = train(algorithm, family, Adam(learning_rate=0.01), settings)
    accuracy = evaluate(result.learner, result.params, family, tasks=100, steps=1).scores["accuracy"].mean(1)
    assert accuracy[0] == pytest.approx(1 / 5)
    assert accuracy[1] > 0.5


IMAGES = Spec((1, 16, 16), 4, "classification")


@pytest.mark.parametrize("batch_norm", ["transductive", "inductive"])
@pytest.mark.parametrize("algorithm", [ProtoNet(), Matching(), Matching(full_context=True), Siamese()])
def test_meta_gradient_through_convolutions_matches_finite_differences(algorithm, batch_norm):
    network = Network("conv4", filters=3, downsample="pool", batch_norm=batch_norm)
    learner = dataclasses.replace(algorithm, network=network).build(IMAGES)
    rng = generator(1)
    params = {name: value + 0.2 * torch.randn(value.shape, generator=rng) for name, value in learner.init(rng).items()}
    support, query = (synthetic.examples(IMAGES, 2, rng, items) for items in (4, 5))
    support.targets[:] = torch.arange(4)
    given = Experience(descriptors=torch.zeros(2, 0), supports=(support,), query=query)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    gradients = torch.autograd.grad(learner.meta_loss(leaves, given)[0].mean(), list(leaves.values()))

    def shifted(name, index, by):
        moved = params | {name: params[name].clone()}
        moved[name].view(-1)[index] += by
        with torch.no_grad():
            return float(learner.meta_loss(moved, given)[0].mean())

    for (name, value), gradient in zip(params.items(), gradients, strict=True):
        for index in {0, value.numel() // 2, value.numel() - 1}:
            expected = (shifted(name, index, 1e-6) - shifted(name, index, -1e-6)) / 2e-6
            assert float(gradient.reshape(-1)[index]) == pytest.approx(expected, rel=1e-4, abs=1e-7), name


def embed_images(batch_norm, query):
    network = Network("conv4", filters=3, downsample="pool", batch_norm=batch_norm)
    learner = ProtoNet(network=network).build(IMAGES)
    support = synthetic.examples(IMAGES, 2, generator(1), items=4)
    params = initial(learner)
    state = learner.adapt(learner.begin(params, torch.zeros(2, 0)), support)
    assert learner.batch_norm == batch_norm
    assert not any(name.startswith("head") for name in params)
    assert learner.predict(learner.begin(params, torch.zeros(2, 0)), query)[0].shape == (2, 5, 4)
    return learner.predict(state, query)[0]


@pytest.mark.parametrize("batch_norm", ["transductive", "inductive"])
def test_query_images_see_each_other_by_transductive_batch_norm_alone(batch_norm):
    query = synthetic.examples(IMAGES, 2, generator(2), items=5).inputs
    changed = query.clone()
    changed[:, -1] += 1
    found, other = embed_images(batch_norm, query), embed_images(batch_norm, changed)
    assert torch.allclose(found[:, :-1], other[:, :-1]) == (batch_norm == "inductive")


@pytest.mark.parametrize("kind", [ProtoNet, Matching])
def test_by_default_the_network_is_without_its_head(kind):
    learner = kind(network=Network("conv4", filters=3)).build(IMAGES)
    given = Experience(
        descriptors=torch.zeros(2, 0), supports=(synthetic.examples(IMAGES, 2, generator(1)),), query=None
    )
    params = initial(learner)
    state = learner.adapt(learner.begin(params, given.descriptors), given.supports[0])
    assert learner.predict(state, given.supports[0].inputs)[0].shape == (2, 6, 4)
    assert sorted({name.split(".")[0] for name in params}) == sorted(
        f"{k}_{i}" for k in ("conv", "norm") for i in range(4)
    )


@every_algorithm
@pytest.mark.parametrize("kind", ["regression", "discrete", "continuous"])
def test_only_classification_is_served(name, kind):
    told = f"{name.split(',')[0]} tells classes apart: it serves classification, not {kind}; for that, use"
    with pytest.raises(ValueError, match=told):
        ALGORITHMS[name].build(Spec((3,), 4, kind))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ProtoNet, {"distance": "manhattan"}, "distance='manhattan': expected one of euclidean, cosine"),
        (ProtoNet, {"embedding": 0}, "embedding=0: expected a width of at least 1"),
        (Matching, {"embedding": -1}, "embedding=-1: expected a width of at least 1"),
        (Matching, {"reads": 0}, "reads=0: expected at least 1"),
        (Matching, {"scale": 0.0}, "scale=0.0: expected a positive number"),
        (Matching, {"scale": -1.0}, "scale=-1.0: expected a positive number"),
        (Matching, {"scale": math.nan}, "scale=nan: expected a positive number"),
        (Matching, {"scale": math.inf}, "scale=inf: expected a positive number"),
        (Siamese, {"embedding": 0}, "embedding=0: expected a width of at least 1"),
    ],
)
def test_options_out_of_range_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.long), r"targets are torch.int64 of shape \(2, 3\): .*, integers \(2, 5\)"),
        (torch.zeros(2, 5), r"targets are torch.float32 of shape \(2, 5\): expected the class of each item, integers"),
    ],
)
def test_targets_that_are_no_classes_are_refused(targets, message):
    learner = ProtoNet(**SMALL).build(SPEC)
    state = learner.begin(initial(learner), torch.zeros(2, 0))
    with pytest.raises(ValueError, match=message):
        learner.adapt(state, Examples(inputs=torch.zeros(2, 5, 3), targets=targets))


def test_rollouts_are_refused():
    learner = ProtoNet(**SMALL).build(SPEC)
    state = learner.begin(initial(learner), torch.zeros(2, 0))
    with pytest.raises(ValueError, match="metric learners need labelled examples, but got a Rollout"):
        learner.adapt(state, synthetic.rollout(synthetic.DISCRETE, 2, generator()))


def clusters(ways=5):
    """Classes that differ in 3 of 20 entries, and in nothing among the other, louder ones."""
    rng = generator(3)
    labels = torch.arange(60).repeat_interleave(20)
    centres = torch.cat([2 * torch.randn(60, 3, generator=rng), torch.zeros(60, 17)], dim=1)
    noise = torch.cat([0.3 * torch.randn(1200, 3, generator=rng), 2 * torch.randn(1200, 17, generator=rng)], dim=1)
    return NWayKShot((centres[labels] + noise).float(), labels, ways=ways, shots=1, queries=5, test_queries=5)


@every_algorithm
def test_it_learns_which_entries_matter(name):
    family = clusters()
    algorithm = dataclasses.replace(ALGORITHMS[name], embedding=16, network=Network(hidden=()))
    settings = Settings(iterations=100, meta_batch_size=16, device="cpu")
    result = train(algorithm, family, Adam(learning_rate=0.01), settings)
    found = evaluate(result.learner, result.params, family, tasks=100, steps=3)
    untrained = evaluate(result.learner, initial(result.learner), family, tasks=100, steps=1)
    accuracy = found.scores["accuracy"].mean(1)
    assert torch.equal(accuracy[1:], accuracy[1].expand(3))
    torch.testing.assert_close(found.scores["loss"][0], torch.full((100,), math.log(5)))
    assert untrained.scores["accuracy"][1].mean() < 0.4
    assert accuracy[1] > 0.8  # three seeds: 0.85 to 0.86 where similarity is a cosine, 0.88 to 0.90 by distance
