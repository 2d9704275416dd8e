"""Memory-augmented networks: access to the memory by numbers worked by hand, and against plain loops; learning."""

import math

import pytest
import torch
from torch import nn

from metarl.algorithms.mann import MANN
from metarl.algorithms.shared import memory
from metarl.algorithms.shared.memory import Form, Hidden, Weights
from metarl.evaluation.scores import evaluate
from metarl.fewshot.classification import NWayKShot
from metarl.outer.gradient import Adam
from metarl.training.settings import Settings
from metarl.training.start import train
from metarl.types import Examples, Spec

pytestmark = pytest.mark.usefixtures("float64")

SPEC = Spec((3,), 4, "classification")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def access(contents, usage, weights, keys, reuse, decay=0.5, written=None, strength=1.0):
    """One row: contents [slot][width], usage [slot], weights [head][slot], keys [head][width], reuse [head]."""
    of_memory = [torch.tensor([values]) for values in (contents, usage, weights)]
    vectors = [torch.tensor([values]) for values in (keys, written or keys)]
    strengths, shares = torch.full((len(keys),), strength), torch.tensor([reuse]).unsqueeze(-1)
    found, usage = memory.access(Hidden(None, None, None, *of_memory), *vectors, shares, strengths, decay)
    return [values[0] for values in (found.contents, usage, found.weights)]


def softmax(*logits):
    total = sum(math.exp(logit) for logit in logits)
    return [math.exp(logit) / total for logit in logits]


def test_an_empty_memory_is_written_in_its_first_slot():
    contents, usage, weights = access(
        [[0.0, 0.0]] * 3, [0.0] * 3, [[0.0] * 3], keys=[[3.0, 4.0]], reuse=[0.25], decay=0.9
    )
    assert contents.tolist() == [[2.25, 3.0], [0, 0], [0, 0]]
    read = softmax(1, 0, 0)
    torch.testing.assert_close(weights, torch.tensor([read]))
    torch.testing.assert_close(usage, torch.tensor([read[0] + 0.75, read[1], read[2]]))


def test_the_least_used_slot_is_emptied_and_shares_the_key_with_the_slots_read_last():
    """The key (0, 1) goes by 1/2 to where (0.2, 0.8, 0) was read, by 1/2 to slot 2, whose (5, 5) is forgotten."""
    contents, usage, weights = access(
        [[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]], [0.5, 0.3, 0.1], [[0.2, 0.8, 0.0]], keys=[[0.0, 1.0]], reuse=[0.5]
    )
    torch.testing.assert_close(contents, torch.tensor([[1.0, 0.1], [0.0, 2.4], [0.0, 0.5]]))
    read = softmax(0.1 / math.sqrt(1.01), 1, 1)
    torch.testing.assert_close(weights, torch.tensor([read]))
    expected = [0.25 + 0.1 + read[0], 0.15 + 0.4 + read[1], 0.05 + 0.5 + read[2]]
    torch.testing.assert_close(usage, torch.tensor(expected))


def test_usage_decays_where_nothing_is_written():
    """With decay 0 only the last access counts, with 1 all of them alike."""
    for decay in (0.0, 0.95, 1.0):
        _, usage, weights = access(
            [[1.0], [1.0], [0.0]], [8.0, 4.0, 2.0], [[0.0, 0.0, 0.0]], keys=[[1.0]], reuse=[0.0], decay=decay
        )
        torch.testing.assert_close(weights, torch.full((1, 3), 1 / 3))
        torch.testing.assert_close(usage, decay * torch.tensor([8.0, 4.0, 2.0]) + torch.tensor([1, 1, 4]) / 3)


def test_heads_write_into_slots_of_their_own_in_the_order_of_usage():
    old, keys = [[7.0, 7.0], [8.0, 8.0], [9.0, 9.0]], [[1.0, 0.0], [0.0, 2.0]]
    contents, _, weights = access(old, [0.3, 0.2, 0.1], [[0.0] * 3] * 2, keys, reuse=[0.0, 0.0])
    assert contents.tolist() == [[7, 7], [0, 2], [1, 0]]
    half = math.sqrt(0.5)
    torch.testing.assert_close(weights, torch.tensor([softmax(half, 0, 1), softmax(half, 1, 0)]))
    contents, _, _ = access(old, [0.3, 0.2, 0.1], [[1.0, 0, 0], [0, 0, 1.0]], keys, reuse=[1.0, 1.0])
    assert contents.tolist() == [[8, 7], [0, 0], [0, 2]]  # emptied all the same


def test_equally_used_slots_are_taken_in_their_order():
    contents, _, _ = access([[5.0]] * 4, [0.2, 0.1, 0.1, 0.1], [[0.0] * 4] * 2, [[1.0], [2.0]], reuse=[0.0, 0.0])
    assert contents.tolist() == [[5], [1], [2], [5]]


def test_a_vector_of_its_own_is_written_and_the_key_reads_it_by_its_strength():
    """The vector (4, 3) has a cosine of 0.8 with the key (1, 0), which is not written."""
    contents, _, weights = access(
        [[0.0, 0.0]] * 2, [0.0] * 2, [[0.0] * 2], keys=[[1.0, 0.0]], reuse=[0.5], written=[[4.0, 3.0]], strength=5.0
    )
    assert contents.tolist() == [[2, 1.5], [0, 0]]
    torch.testing.assert_close(weights, torch.tensor([softmax(4, 0)]))


def small(**options):
    learner = MANN(**({"slots": 6, "width": 3, "controller": 5, "heads": 2, "decay": 0.8} | options)).build(SPEC)
    rng = generator(2)
    values = learner.init(generator(1)).items()
    return learner, {name: value + 0.3 * torch.randn(value.shape, generator=rng) for name, value in values}


def examples(tasks=1, items=7):
    rng = generator(3)
    return Examples(
        inputs=torch.randn(tasks, items, 3, generator=rng), targets=torch.randint(4, (tasks, items), generator=rng)
    )


FORMS = {
    "default": {},
    "fixed strength": {"learn_key_strength": False, "key_strength": 3.0},
    "the paper's": {"write": "key", "key_strength": 1.0, "learn_key_strength": False},
    "learned strength of keys that are written": {"write": "key"},
}


def one_by_one(params, inputs, write="vector", key_strength=10.0, learn_key_strength=True):
    """MANN on one sequence ``[item, input]``, head by head and slot by slot, by the paper's equations."""
    strength = params["heads.log_strength"].exp() if learn_key_strength else [key_strength] * 2
    hidden, cell, read = torch.zeros(5), torch.zeros(5), [torch.zeros(3)] * 2
    memory, usage, weights = [torch.zeros(3)] * 6, [torch.zeros(())] * 6, [[torch.zeros(())] * 6] * 2
    for item in inputs:
        gates = params["controller.input"] @ item + params["controller.bias"]
        gates = gates + params["controller.recurrent"] @ torch.cat([hidden, *read])
        cell = torch.sigmoid(gates[5:10]) * cell + torch.sigmoid(gates[:5]) * torch.tanh(gates[10:15])
        hidden = torch.sigmoid(gates[15:]) * torch.tanh(cell)
        asked = params["heads.weight"] @ hidden + params["heads.bias"]
        keys, reuse = [torch.tanh(asked[:3]), torch.tanh(asked[3:6])], torch.sigmoid(asked[-2:])
        vectors = [torch.tanh(asked[6:9]), torch.tanh(asked[9:12])] if write == "vector" else keys
        order = sorted(range(6), key=lambda slot: usage[slot].item())[:2]
        written = [
            [reuse[head] * weights[head][slot] + (1 - reuse[head]) * (order[head] == slot) for slot in range(6)]
            for head in range(2)
        ]
        kept = [torch.zeros(3) if slot in order else memory[slot] for slot in range(6)]
        memory = [kept[slot] + sum(written[head][slot] * vectors[head] for head in range(2)) for slot in range(6)]
        cosines = [[key @ slot / (length(key) * length(slot) + 1e-8) for slot in memory] for key in keys]
        weights = [list((torch.stack(row) * strength[head]).softmax(0)) for head, row in enumerate(cosines)]
        usage = [0.8 * usage[slot] + sum(weights[h][slot] + written[h][slot] for h in range(2)) for slot in range(6)]
        read = [sum(weights[head][slot] * memory[slot] for slot in range(6)) for head in range(2)]
        yield params["output.weight"] @ torch.cat([hidden, *read]) + params["output.bias"]


def length(vector):
    """The length of an empty vector has no slope; that of a square root is infinite there."""
    return vector.norm() if vector.any() else torch.zeros(())


def sequences(shown):
    """What a controller is shown: ``[task, item, input]``, with the label of the item before."""
    late = nn.functional.pad(nn.functional.one_hot(shown.targets[:, :-1], 4).double(), (0, 0, 1, 0))
    return torch.cat([shown.inputs, late], dim=2)


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_it_equals_loops_over_tasks_items_heads_and_slots(options):
    """Outputs, and the gradients of all parameters, which autograd finds in the loops."""
    learner, params = small(**options)
    leaves = {name: value.requires_grad_() for name, value in params.items()}
    shown = examples(tasks=3)
    found, _ = learner.memory.unroll(learner.begin(leaves, torch.zeros(3, 0)), shown)
    expected = torch.stack([torch.stack(list(one_by_one(leaves, row, **options))) for row in sequences(shown)])
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape, generator=generator(5))
    gradients = [torch.autograd.grad((values * weights).sum(), list(leaves.values())) for values in (found, expected)]
    for name, ours, theirs in zip(leaves, *gradients, strict=True):
        assert theirs.any(), name
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("separate", [True, False])
def test_derivatives_by_hand_match_finite_differences(separate):
    """Of a sequence that goes on from any state, in all that is given to it and in the state after it."""
    rng, form = generator(6), Form(2, 3, 0.8, separate)

    def random(*shape):
        return (0.7 * torch.randn(shape, generator=rng)).requires_grad_()

    told = 2 * (3 * (1 + separate) + 1)
    weights = Weights(random(20, 11), random(told, 5), random(told), random(2))
    usage = torch.rand(2, 6, generator=rng)
    hidden = Hidden(random(2, 5), random(2, 5), random(2, 6), random(2, 6, 3), usage, random(2, 2, 6))

    def differentiable(*given):
        features, after = memory.run(form, Weights(*given[:4]), Hidden(*given[4:10]), given[10])
        return features, *after._replace(usage=features.new_zeros(()))

    assert torch.autograd.gradcheck(differentiable, (*weights, *hidden, random(2, 4, 20)))


def test_a_second_derivative_is_refused():
    learner, params = small()
    leaves = {name: value.requires_grad_() for name, value in params.items()}
    found, _ = learner.memory.unroll(learner.begin(leaves, torch.zeros(1, 0)), examples())
    (gradient,) = torch.autograd.grad(found.sum(), leaves["heads.weight"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_queries_go_on_from_the_state_after_the_sequence_with_its_gradient():
    learner, params = small()
    leaves = {name: value.requires_grad_() for name, value in params.items()}
    shown, query = examples(), torch.randn(1, 1, 3, generator=generator(7))
    found, _ = learner.predict(learner.adapt(learner.begin(leaves, torch.zeros(1, 0)), shown), query)
    last = nn.functional.one_hot(shown.targets[:, -1:], 4).double()
    row = torch.cat([sequences(shown), torch.cat([query, last], dim=2)], dim=1)[0]
    expected = list(one_by_one(leaves, row))[-1]
    torch.testing.assert_close(found[0, 0], expected)
    gradients = [torch.autograd.grad(values.square().sum(), list(leaves.values())) for values in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_without_its_memory_it_is_an_lstm():
    learner, params = small()
    params["controller.recurrent"][:, 5:] = 0
    params["output.weight"][:, 5:] = 0
    reference = nn.LSTM(7, 5, batch_first=True)
    values = {"weight_ih_l0": params["controller.input"], "weight_hh_l0": params["controller.recurrent"][:, :5]}
    values |= {"bias_ih_l0": params["controller.bias"], "bias_hh_l0": torch.zeros(20)}
    reference.load_state_dict(values)
    shown = examples(tasks=2)
    late = nn.functional.pad(nn.functional.one_hot(shown.targets[:, :-1], 4).double(), (0, 0, 1, 0))
    hidden, _ = reference(torch.cat([shown.inputs, late], dim=2))
    expected = hidden @ params["output.weight"][:, :5].T + params["output.bias"]
    torch.testing.assert_close(learner.memory.unroll(learner.begin(params, torch.zeros(2, 0)), shown)[0], expected)


def test_to_begin_with_the_cell_is_kept():
    bias = MANN(controller=2).build(SPEC).init(generator())["controller.bias"]
    assert bias.tolist() == [0, 0, 1, 1, 0, 0, 0, 0]


def test_more_items_than_slots():
    learner, params = small(slots=2)
    found, _ = learner.memory.unroll(learner.begin(params, torch.zeros(1, 0)), examples(items=30))
    assert found.isfinite().all()


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_control_is_refused(kind):
    with pytest.raises(
        ValueError, match="MANN learns from labelled examples; for control, use rl2, which also has a memory"
    ):
        MANN().build(Spec((3,), 2, kind))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots=0: expected at least 1"),
        ({"width": 0}, "width=0: expected at least 1"),
        ({"controller": -1}, "controller=-1: expected at least 1"),
        ({"heads": 0}, "heads=0: expected at least 1"),
        ({"heads": 3, "slots": 2}, "heads=3: each head writes its own slot, and there are only 2"),
        ({"decay": 1.5}, r"decay=1.5: expected a number in \[0, 1\]"),
        ({"write": "both"}, "write='both': expected one of vector, key"),
        ({"key_strength": 0.0}, "key_strength=0.0: expected a positive number"),
        ({"key_strength": math.nan}, "key_strength=nan: expected a positive number"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MANN(**options)


def patterns():
    """Two of a hundred patterns are called 0 and 1: which is which must be told, and anew for each task."""
    rng, labels = generator(3), torch.arange(100).repeat_interleave(10)
    inputs = torch.randn(100, 4, generator=rng)[labels] + 0.1 * torch.randn(1000, 4, generator=rng)
    return NWayKShot(inputs.float(), labels, ways=2, shots=3, queries=1, test_queries=2)


def test_it_learns_to_bind_labels_to_items():
    torch.set_default_dtype(torch.float32)
    algorithm = MANN(slots=16, width=8, controller=32, heads=1)
    settings = Settings(iterations=450, meta_batch_size=32, device="cpu")
    result = train(algorithm, patterns(), Adam(learning_rate=0.003), settings)
    found = evaluate(result.learner, result.params, patterns(), tasks=200, steps=1)
    accuracy, instances = found.scores["accuracy"].mean(1), found.instances.mean(1)
    assert abs(accuracy[0] - 0.5) < 0.15  # four standard errors: a task is all right or all wrong
    assert accuracy[1] > 0.8
    assert instances[2] > 0.78  # of the first items of two classes, the second's can be told from the first's: 3/4
