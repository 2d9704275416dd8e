"""Recurrent cells of one's own: RL^2 acts and learns with them as with its GRU."""

from dataclasses import replace

import pytest
import torch
from support import synthetic
from torch import Tensor, nn

from metarl import plugins
from metarl.algorithms.rl2 import RL2, Trial
from metarl.algorithms.shared.cells import cell
from metarl.control import Sampling
from metarl.outer import TRPO, Adam, default_outer
from metarl.training.iteration import gather, streams
from metarl.types import Experience, Learner, Params
from metarl_envs.bandit import Bandit
from metarl_envs.navigation import PointNavigation
from metarl_plugins.sinusoid import Sinusoid

SPEC = synthetic.CONTINUOUS
INPUTS = 3 + 2 + 2


class Leaky(nn.Module):
    """A cell of one's own: a leaky sum of its inputs, and what it was before."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.read = nn.Linear(inputs, hidden)

    def forward(self, inputs: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, object]:
        units, before = state if state is not None else (torch.zeros(1, len(inputs), self.read.out_features),) * 2
        outputs = []
        for now in inputs.unbind(1):
            units, before = (0.5 * units + self.read(now).tanh()), units
            outputs.append(units[0] - before[0])
        return torch.stack(outputs, dim=1), (units, before)


def stacked(inputs: int, hidden: int) -> nn.LSTM:
    return nn.LSTM(inputs, hidden, num_layers=2, batch_first=True, dropout=0.5)


def no_module(inputs: int, hidden: int) -> int:
    return inputs + hidden


CELLS = {
    "torch.nn:LSTM": "torch.nn:LSTM",
    "nn.GRU": nn.GRU,
    "stacked": stacked,
    "own": Leaky,
    "a module": nn.LSTM(INPUTS, 4, proj_size=3).double(),
}
each_cell = pytest.mark.parametrize("name", CELLS)


def built(name: str, **options: object) -> tuple[Learner, Params]:
    learner = RL2(hidden=6, cell=CELLS[name], **options).build(SPEC)  # type: ignore[arg-type]
    return learner, learner.init(torch.Generator().manual_seed(0))


@each_cell
@pytest.mark.usefixtures("float64")
def test_reading_an_episode_again_says_what_was_said_step_by_step(name: str) -> None:
    learner, params = built(name)
    params = {key: value.double() for key, value in params.items()}
    assert learner.memory is not None
    assert learner.memory.observe is not None
    batch = synthetic.rollout(SPEC, 2, torch.Generator().manual_seed(1), episodes=3, horizon=5)
    state = learner.begin(params, torch.zeros(2, 0))
    with torch.no_grad():
        for _ in range(2):  # two episodes of a trial
            outputs, after = learner.memory.unroll(state, batch)
            known: Trial = state
            ends = [[None] * 3 for _ in range(2)]
            for step in range(5):
                said, known = learner.predict(known, batch.observations[:, :, step])
                valid = batch.mask[:, :, step] > 0
                assert torch.allclose(said[valid], outputs[:, :, step][valid], atol=1e-9)
                for task, episode in valid.nonzero().tolist():
                    ends[task][episode] = known.units[task, episode]
                lengths = batch.mask.sum(2)
                known = learner.memory.observe(
                    known, batch.actions[:, :, step], batch.rewards[:, :, step], lengths == step + 1
                )
            expected = torch.stack([torch.stack(row) for row in ends])  # type: ignore[arg-type]
            assert torch.allclose(after.units, expected, atol=1e-9)
            state = after


@pytest.mark.usefixtures("float64")
def test_nn_gru_is_the_gru() -> None:
    ours, theirs = RL2(hidden=6).build(SPEC), RL2(hidden=6, cell=nn.GRU).build(SPEC)
    params = ours.init(torch.Generator().manual_seed(0))
    names = {"gru.input": "weight_ih_l0", "gru.recurrent": "weight_hh_l0", "gru.input_bias": "bias_ih_l0",
             "gru.recurrent_bias": "bias_hh_l0"}  # fmt: skip
    same = {f"cell.{names[name]}" if name in names else name: value for name, value in params.items()}
    assert {name: value.shape for name, value in same.items()} == {
        name: value.shape for name, value in theirs.init(torch.Generator().manual_seed(0)).items()
    }
    parts = [synthetic.rollout(SPEC, 3, torch.Generator().manual_seed(seed)) for seed in range(2)]
    given = Experience(descriptors=torch.zeros(3, 0), supports=(parts[0],), query=parts[1])
    gradients = []
    for learner, own in ((ours, params), (theirs, same)):
        leaves = {name: value.clone().requires_grad_() for name, value in own.items()}
        losses, _ = learner.meta_loss(leaves, given)
        gradients.append((losses, torch.autograd.grad(losses.sum(), list(leaves.values()))))
    assert torch.allclose(gradients[0][0], gradients[1][0])
    for one, other in zip(gradients[0][1], gradients[1][1], strict=True):
        assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("outer", [Adam(), TRPO()], ids=["adam", "trpo"])
@pytest.mark.parametrize("name", ["torch.nn:LSTM", "own"])
def test_outer_updates_lower_the_loss(name: str, outer: Adam | TRPO) -> None:
    family = PointNavigation(sampling=Sampling(episodes=3, horizon=6))
    learner = RL2(hidden=6, cell=CELLS[name]).build(family.spec)  # type: ignore[arg-type]
    params = learner.init(torch.Generator().manual_seed(0))
    draws = streams(0, 1, torch.device("cpu"))
    experience, _ = gather(learner, params, family.sample(4, "train", next(draws)), draws)
    update = outer.update(learner, params, outer.init(params), experience)
    before, after = (float(learner.meta_loss(one, experience)[0].detach().mean()) for one in (params, update.params))
    assert after < before


def test_initial_parameters_follow_from_the_generator_and_leave_the_global_one() -> None:
    state = torch.get_rng_state()
    one, same, other = (built("torch.nn:LSTM")[0].init(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["cell.weight_ih_l0"], other["cell.weight_ih_l0"])


def test_examples_are_learned_too() -> None:
    family = Sinusoid()
    learner = RL2(hidden=6, cell=nn.LSTM).build(family.spec)
    params = learner.init(torch.Generator().manual_seed(0))
    given = synthetic.few_shot(family.spec)
    losses, metrics = learner.meta_loss(params, given)
    assert losses.shape == (3,)
    assert "loss/step_1" in metrics


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (no_module, "makes int"),
        (nn.Linear, "cannot run on inputs"),
        (nn.LSTM(INPUTS + 1, 4), "cannot run on inputs"),
        (nn.GRU(INPUTS, 4, bidirectional=True), "cannot look ahead"),
        (nn.GRUCell, "cannot run on|has the state"),
        ("torch.nn:NoSuchCell", "NoSuchCell"),
    ],
)
def test_other_cells_are_refused(choice: object, told: str) -> None:
    with pytest.raises((ValueError, plugins.PluginError), match=told):
        RL2(cell=choice).build(SPEC)  # type: ignore[arg-type]


def test_the_default_is_adam() -> None:
    assert default_outer(RL2(), Bandit().spec) == Adam()
    assert isinstance(default_outer(replace(RL2(), hidden=3), PointNavigation().spec), Adam)


def test_states_are_flat() -> None:
    own = cell(stacked, 5, 4)
    assert own.shapes == ((2, 4), (2, 4))
    assert (own.size, own.width, own.is_tuple) == (16, 4, True)
