"""The LSTM meta-learner: against loops over tasks and coordinates, finite differences, and plain gradient descent."""

import math

import pytest
import torch
from support import slow_inner, synthetic
from torch import nn

from metarl.algorithms.gradient import meta_lstm
from metarl.algorithms.gradient.meta_lstm import MetaLSTM
from metarl.algorithms.maml import MAML
from metarl.evaluation.scores import evaluate
from metarl.networks.options import Network
from metarl.outer.gradient import Adam
from metarl.training.settings import Settings
from metarl.training.start import train
from metarl.types import Experience, Spec, each_tensor
from metarl_plugins.sinusoid import Sinusoid

pytestmark = pytest.mark.usefixtures("float64")

REGRESSION, CLASSIFICATION = Spec((2,), 1, "regression"), Spec((2,), 3, "classification")
NETWORK = Network(hidden=(3,), activation="tanh")
every_kind = pytest.mark.parametrize("spec", [REGRESSION, CLASSIFICATION], ids=["regression", "classification"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def experience(spec, steps, tasks=2):
    rng = generator()
    supports = tuple(synthetic.examples(spec, tasks, rng, items=4) for _ in range(steps))
    return Experience(descriptors=torch.zeros(tasks, 0), supports=supports, query=synthetic.examples(spec, tasks, rng))


def small(spec, **options):
    """A learner whose gates are far from where they start, and its parameters."""
    learner = MetaLSTM(**({"steps": 3, "units": 4, "network": NETWORK} | options)).build(spec)
    params, rng = learner.init(generator(1)), generator(2)
    return learner, {name: value + 0.3 * torch.randn(value.shape, generator=rng) for name, value in params.items()}


def by_the_paper(x, p=10):
    return (math.log(abs(x)) / p, math.copysign(1, x)) if abs(x) >= math.exp(-p) else (-1.0, math.exp(p) * x)


def test_numbers_of_any_size_are_read_alike():
    values = [3.0, -1e-3, math.exp(-10) * 1.01, math.exp(-10) * 0.99, -1e-6, 0.0, 1e20]
    found = meta_lstm.preprocessed(torch.tensor(values))
    torch.testing.assert_close(found, torch.tensor([by_the_paper(value) for value in values]))
    zero = torch.zeros(1, requires_grad=True)
    assert torch.autograd.grad(meta_lstm.preprocessed(zero).sum(), zero)[0].item() == pytest.approx(math.exp(10))


def one_task(spec, params, supports):
    """The parameters of one task after all updates, one coordinate after another, with torch's own LSTM cell."""
    optimiser = {name.partition(":")[2]: value for name, value in params.items() if name.startswith("optimiser:")}
    own = {name: value for name, value in params.items() if not name.startswith("optimiser:")}
    units = optimiser["layer.weight"].shape[1] - 4
    cell = nn.LSTMCell(4, units)
    weight, bias = optimiser["layer.weight"], optimiser["layer.bias"]
    cell.load_state_dict(
        {"weight_ih": weight[:, :4], "weight_hh": weight[:, 4:], "bias_ih": bias, "bias_hh": torch.zeros_like(bias)}
    )
    remembered = {}
    for support in supports:
        leaves = {name: value.detach().requires_grad_() for name, value in own.items()}
        loss = slow_inner.loss(spec.kind, leaves, support)
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        moved = {}
        for name, value in own.items():
            numbers = []
            for index, parameter in enumerate(value.flatten()):
                gradient = gradients[name].flatten()[index].item()
                state, keep, enter = remembered.get((name, index), ((torch.zeros(1, units),) * 2, 0.0, 0.0))
                read = torch.tensor([[*by_the_paper(gradient), *by_the_paper(loss.item())]])
                state = cell(read, state)
                rows = [
                    torch.cat([state[0][0], torch.stack([parameter, torch.as_tensor(last)])]) for last in (keep, enter)
                ]
                keep, enter = (
                    torch.sigmoid(row @ optimiser[f"{gate}.weight"] + optimiser[f"{gate}.bias"])
                    for row, gate in zip(rows, ("keep", "enter"), strict=True)
                )
                remembered[name, index] = state, keep, enter
                numbers.append(keep * parameter - enter * gradient)
            moved[name] = torch.stack(numbers).reshape(value.shape)
        own = moved
    return own


@every_kind
def test_it_equals_loops_over_tasks_and_coordinates(spec):
    learner, params = small(spec)
    given = experience(spec, 3)
    state = learner.begin(params, given.descriptors)
    for support in given.supports:
        state = learner.adapt(state, support)
    for task in range(2):
        rows = [each_tensor(lambda field, task=task: field[task], support) for support in given.supports]
        for name, value in one_task(spec, params, rows).items():
            torch.testing.assert_close(state.params[name][task], value, msg=name)


def mean_loss(learner, params, given):
    return learner.meta_loss(params, given)[0].mean()


@every_kind
@pytest.mark.parametrize("second_order", [False, True])
def test_the_meta_gradient_matches_finite_differences(spec, second_order, monkeypatch):
    """In first order, with the gradients and losses that were found at the start held as they are."""
    learner, params = small(spec, second_order=second_order)
    given, kept = experience(spec, 3), []
    plain = meta_lstm._Loop.slopes

    def recorded(loop, own, batch):
        kept.append(plain(loop, own, batch))
        return kept[-1]

    if not second_order:
        with monkeypatch.context() as patch:
            patch.setattr(meta_lstm._Loop, "slopes", recorded)
            mean_loss(learner, params, given)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    gradients = torch.autograd.grad(mean_loss(learner, leaves, given), list(leaves.values()))
    if not second_order:
        held = {id(support): slopes for support, slopes in zip(given.supports, kept, strict=True)}
        monkeypatch.setattr(meta_lstm._Loop, "slopes", lambda loop, own, batch: held[id(batch)])

    def shifted(name, index, by):
        moved = params | {name: params[name].clone()}
        moved[name].view(-1)[index] += by
        with torch.no_grad():
            return mean_loss(learner, moved, given).item()

    for (name, value), gradient in zip(params.items(), gradients, strict=True):
        for index in {0, value.numel() // 2, value.numel() - 1}:
            expected = (shifted(name, index, 1e-6) - shifted(name, index, -1e-6)) / 2e-6
            assert gradient.reshape(-1)[index].item() == pytest.approx(expected, rel=1e-5, abs=1e-9), name


def test_the_orders_differ_in_the_gradient_alone():
    found = []
    for second_order in (False, True):
        learner, params = small(REGRESSION, second_order=second_order)
        leaves = {name: value.requires_grad_() for name, value in params.items()}
        loss = mean_loss(learner, leaves, experience(REGRESSION, 3))
        found.append((loss, torch.autograd.grad(loss, leaves["hidden_0.weight"])[0]))
    (loss, gradient), (other_loss, other) = found
    torch.testing.assert_close(loss, other_loss)
    assert not torch.allclose(gradient, other)


@every_kind
def test_with_an_open_forget_gate_and_a_constant_input_gate_it_is_gradient_descent(spec):
    learner, params = small(spec)
    for name in ("layer.weight", "keep.weight", "enter.weight"):
        params[f"optimiser:{name}"] = torch.zeros_like(params[f"optimiser:{name}"])
    params |= {"optimiser:keep.bias": torch.tensor(60.0), "optimiser:enter.bias": torch.tensor(math.log(0.2 / 0.8))}
    descent = MAML(steps=3, step_size=0.2, first_order=True, network=NETWORK).build(spec)
    own = {name: value for name, value in params.items() if not name.startswith("optimiser:")}
    given, states = experience(spec, 3), []
    for one, values in ((learner, params), (descent, own)):
        state = one.begin(values, given.descriptors)
        for support in given.supports:
            state = one.adapt(state, support)
        states.append(state.params)
    torch.testing.assert_close(*states)


def test_to_begin_with_its_gates_are_those_of_gradient_descent():
    learner = MetaLSTM(step_size=0.05, network=NETWORK).build(REGRESSION)
    given = experience(REGRESSION, 1)
    state = learner.adapt(learner.begin(learner.init(generator()), given.descriptors), given.supports[0])
    torch.testing.assert_close(state.carried.enter, torch.full_like(state.carried.enter, 0.05), rtol=0.1, atol=0)
    assert state.carried.keep.min() > 0.99


def test_batch_norm_takes_its_statistics_from_the_episodes_support_items():
    network = Network("conv4", filters=3, batch_norm="inductive")
    learner = MetaLSTM(steps=1, units=2, network=network).build(Spec((1, 16, 16), 3, "classification"))
    given = experience(learner.spec, 1)
    params = learner.init(generator())
    state = learner.adapt(learner.begin(params, given.descriptors), given.supports[0])
    alone, _ = learner.predict(state, given.query.inputs[:, :1])
    together, _ = learner.predict(state, given.query.inputs)
    torch.testing.assert_close(together[:, :1], alone)
    assert learner.batch_norm == "inductive"


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_control_is_refused_and_told_what_serves_it(kind):
    with pytest.raises(
        ValueError, match=r"meta-lstm reads the loss of labelled examples.*use maml with learn_step_sizes"
    ):
        MetaLSTM().build(Spec((3,), 2, kind))


def test_rollouts_are_refused():
    learner, params = small(REGRESSION)
    with pytest.raises(ValueError, match="meta-lstm learns from labelled examples, but got a Rollout"):
        learner.adapt(learner.begin(params, torch.zeros(2, 0)), synthetic.rollout(synthetic.DISCRETE, 2, generator()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0: expected at least 1"),
        ({"units": 0}, "units=0: expected at least 1"),
        ({"step_size": 0.0}, "step_size=0.0: it is a gate's value, between 0 and 1"),
        ({"step_size": 1.0}, "step_size=1.0: it is a gate's value, between 0 and 1"),
        ({"step_size": math.nan}, "step_size=nan: it is a gate's value"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MetaLSTM(**options)


def test_it_learns_to_optimise():
    torch.set_default_dtype(torch.float32)
    family, network = Sinusoid(shots=10), Network(hidden=(20, 20))
    algorithm = MetaLSTM(steps=3, units=8, network=network)
    result = train(
        algorithm, family, Adam(learning_rate=0.01), Settings(iterations=300, meta_batch_size=8, device="cpu")
    )
    scores = [
        evaluate(result.learner, params, family, tasks=100, steps=3).scores["loss"].mean(1)
        for params in (result.learner.init(generator()), result.params)
    ]
    assert scores[1][3] < 0.7 * scores[0][3]
    assert scores[1][3] < 0.7 * scores[1][0]
