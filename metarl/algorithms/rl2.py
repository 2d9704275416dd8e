"""RL^2 (Duan et al., 2016, arXiv 1611.02779): a recurrent policy whose hidden state lives through a task's episodes.

What it learns of a task is in that state: it sees, besides the observation, its last action, the reward for it and
whether the episode ended. A trial is several episodes of one task; each lane of a rollout is a trial of its own.
"""

from dataclasses import dataclass
from math import inf, log, prod
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

from metarl import objectives
from metarl.advantages import Advantages
from metarl.algorithms.normalising import normalise_observations
from metarl.algorithms.shared import cells, recurrent
from metarl.algorithms.shared.cells import Cell, CellChoice
from metarl.algorithms.shared.recurrent import LossOn, glorot
from metarl.networks import chosen, log_std
from metarl.outer import Adam
from metarl.speed import without_cudnn
from metarl.types import Batch, Experience, Learner, Memory, Params, Shared, Spec, joined, rollout_of

WEIGHTS = ("gru.input", "gru.recurrent", "gru.input_bias", "gru.recurrent_bias")
"""Parameters of the GRU, in the order in which torch takes them."""


class Hidden(NamedTuple):
    """The state of the recurrent cell."""

    units: Tensor  # [row, size]


class Trial(NamedTuple):
    """What the policy knows of each task; in the beginning, all episodes of a task share one lane."""

    params: Shared
    units: Tensor  # [task, episode or 1, size] the state of the recurrent cell: the hidden units of a GRU
    last: Tensor  # [task, episode or 1, outcome_size(spec)] what came of the last step; zeros where there was none


@dataclass(frozen=True)
class RL2:
    """RL^2: a recurrent policy that learns a task by acting in it, for its memory lives through the task's episodes.

    An adaptation is one more episode, in each lane: ``return/step_k`` is that of a trial's episode k + 1. Bandits want
    more pulls in a trial than there are by default: ``--tasks.sampling.horizon 10 --tasks.sampling.episodes 10
    --algorithm.episodes-per-trial 10`` is 10 trials of 100 pulls of each bandit. Examples are learned by being shown,
    too, with the label of the one before in place of the reward.
    """

    episodes_per_trial: int = 2
    """Episodes that the memory lives through in meta-training (the paper: 2 for mazes, 10 to 100 for small MDPs and for
    bandits, whose episodes are single pulls)."""
    hidden: int = 256
    """Units of the recurrent cell."""
    cell: CellChoice = "gru"
    """The recurrent cell: gru, or 'module:attribute' of a function of (inputs, hidden) that makes an nn.Module which is
    called as nn.GRU is. torch.nn:LSTM is one. In Python, also the class, the function or the module itself."""
    advantages: Advantages = Advantages()
    """How advantages are estimated, over whole trials: the discount goes on over the ends of episodes. The paper's
    lambda of 0.3 is for a recurrent value function; a linear baseline knows nothing of the past."""
    clip: float = 0.2
    """How far the policy's probability ratio may move from 1 in the meta-loss (PPO), which adam minimises."""
    std: float = 1.0
    """Initial standard deviation of a Gaussian policy, in units of its action."""
    distribution: str | None = None
    """How a policy's actions are distributed: see the network's option of other algorithms. squashed keeps them within
    their bounds."""
    output_scale: float = 1.0
    """Factor of the head's initial weights, for control. 0.01, say, gives a policy that hardly depends on observations
    at first."""
    normalise_observations: bool = False
    """For control: read observations minus their running mean, divided by their running standard deviation. Leave it
    off for one-hot observations, such as those of Discrete spaces."""
    loss_on: LossOn = "sequence"
    """What is trained on examples: every item, as it is shown, and the queries (sequence); or the queries only."""

    def __post_init__(self) -> None:
        for name in ("episodes_per_trial", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        for name in ("clip", "std", "output_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if not (self.std < inf and self.output_scale < inf):
            raise ValueError(f"std={self.std} and output_scale={self.output_scale} must be finite")
        recurrent.check_loss_on(self.loss_on)

    def default_outer(self) -> Adam:
        """Return Adam, for all kinds of data: the meta-loss is PPO's, which takes several steps on the same trials."""
        return Adam(learning_rate=1e-3, epochs=1)

    def build(self, spec: Spec) -> Learner:
        """Return the learner for spec, of any kind."""
        spec = spec if self.distribution is None else chosen(spec, self.distribution)
        network = _network(self, spec)
        if not spec.control:
            self._refuse_for_examples()
            return recurrent.few_shot(
                spec, recurrent.Core(network.init, network.start, network.run, network.run_masked), self.loss_on
            )
        fold = _Fold(self, spec, network)
        learner = Learner(
            spec, self.episodes_per_trial - 1, network.init, fold.begin, fold.adapt, fold.predict, fold.meta_loss,
            estimate=self.advantages.of_trials, memory=Memory(fold.unroll, fold.observe),
        )  # fmt: skip
        return normalise_observations(learner) if self.normalise_observations else learner

    def _refuse_for_examples(self) -> None:
        if self.normalise_observations or self.output_scale != 1.0:
            raise ValueError("normalise_observations and output_scale are for control, not for labelled examples")


def _network(options: RL2, spec: Spec) -> "_Network":
    inputs = prod(spec.input_shape) + outcome_size(spec) if spec.control else recurrent.input_size(spec)
    own = None if options.cell == "gru" else cells.cell(options.cell, inputs, options.hidden)
    return _Network(options, spec, inputs, own)


@dataclass(frozen=True)
class _Network:
    """A recurrent cell and a linear layer on top: the functions of a Core."""

    options: RL2
    spec: Spec
    inputs: int
    cell: Cell | None
    """A cell of the user's; None for the GRU."""

    def init(self, generator: Generator) -> Params:
        units, spec = self.options.hidden, self.spec
        if self.cell is not None:
            params, units = self.cell.init(generator), self.cell.width
        else:
            params = {
                "gru.input": glorot(generator, 3 * units, self.inputs),
                "gru.recurrent": glorot(generator, 3 * units, units),
                "gru.input_bias": torch.zeros(3 * units),
                "gru.recurrent_bias": torch.zeros(3 * units),
            }
        params["head.weight"] = self.options.output_scale * glorot(generator, spec.head_size, units)
        params["head.bias"] = torch.zeros(spec.head_size)
        if spec.control and spec.distribution.log_stds:
            params["policy.log_std"] = torch.full((spec.distribution.log_stds,), log(self.options.std))
        return params

    def start(self, params: Params, rows: int) -> Hidden:
        size = self.options.hidden if self.cell is None else self.cell.size
        return Hidden(params["head.weight"].new_zeros(rows, size))

    def run(self, params: Params, hidden: Hidden, inputs: Tensor) -> tuple[Tensor, Hidden]:
        if self.cell is not None:
            outputs, after = self.cell.run(params, hidden.units, inputs)
            return self.say(params, outputs), Hidden(after)
        units = self.units(params, hidden.units, inputs)
        return self.say(params, units), Hidden(units[:, -1])

    def step(self, params: Params, start: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step, of inputs ``[row, input_size]``: what is said ``[row, model_outputs]``, and the state."""
        if self.cell is not None:
            outputs, units = self.cell.run(params, start, inputs.unsqueeze(1))
            return self.say(params, outputs).squeeze(1), units
        units = torch.gru_cell(inputs, start, *(params[name] for name in WEIGHTS))
        return self.say(params, units), units

    def run_to(self, params: Params, start: Tensor, inputs: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Go through inputs ``[row, time, input_size]``: what is said at each step, and the state after ``last``."""
        if self.cell is not None:
            outputs, ends = self.cell.run_to(params, start, inputs, last)
            return self.say(params, outputs), ends
        units = self.units(params, start, inputs)
        ends = units.gather(1, last.reshape(-1, 1, 1).expand(-1, 1, units.shape[-1])).squeeze(1)
        return self.say(params, units), ends

    def run_masked(self, params: Params, hidden: Hidden, inputs: Tensor, last: Tensor) -> tuple[Tensor, Hidden]:
        """Go through inputs as ``run`` does; the state is that after the items ``last`` ``[row]``."""
        outputs, units = self.run_to(params, hidden.units, inputs, last)
        return outputs, Hidden(units)

    def units(self, params: Params, start: Tensor, inputs: Tensor) -> Tensor:
        """Go through inputs ``[row, time, input_size]``: the GRU's states ``[row, time, hidden]``."""
        with without_cudnn(inputs.device):  # TRPO differentiates twice
            weights = [params[name] for name in WEIGHTS]
            return torch.gru(inputs, start.unsqueeze(0), weights, True, 1, 0.0, False, False, True)[0]

    def say(self, params: Params, units: Tensor) -> Tensor:
        outputs = functional.linear(units, params["head.weight"], params["head.bias"])
        if "policy.log_std" not in params:
            return outputs
        return log_std(params["policy.log_std"].expand(len(outputs), -1), outputs)


@dataclass(frozen=True)
class _Fold:
    """The functions of RL^2's Learner for control."""

    options: RL2
    spec: Spec
    network: _Network

    def begin(self, params: Params, descriptors: Tensor) -> Trial:
        units = self.network.start(params, len(descriptors)).units.unsqueeze(1)
        return Trial(Shared(params), units, units.new_zeros(len(descriptors), 1, outcome_size(self.spec)))

    def predict(self, state: Trial, inputs: Tensor) -> tuple[Tensor, Trial]:
        """Act one step: observations ``[task, episode, *input_shape]`` to outputs ``[task, episode, model_outputs]``.

        Raises:
            ValueError: there are steps of several times: they depend on what was done, which ``unroll`` is given.
        """
        if inputs.ndim != 2 + len(self.spec.input_shape):
            raise ValueError(
                f"a policy with memory acts one step after another: expected observations of shape [task, episode, "
                f"{', '.join(map(str, self.spec.input_shape))}], not {list(inputs.shape)}"
            )
        tasks, episodes = inputs.shape[:2]
        before, units = state.last.expand(-1, episodes, -1), state.units.expand(-1, episodes, -1)
        seen = torch.cat([inputs.reshape(tasks, episodes, -1), before], dim=-1)
        said, units = self.network.step(state.params, units.flatten(0, 1), seen.flatten(0, 1))
        return said.reshape(tasks, episodes, -1), state._replace(units=units.reshape(tasks, episodes, -1))

    def observe(self, state: Trial, actions: Tensor, rewards: Tensor, done: Tensor) -> Trial:
        return state._replace(last=self._outcomes(actions, rewards, done))

    def _outcomes(self, actions: Tensor, rewards: Tensor, done: Tensor) -> Tensor:
        """Put together what follows an observation, ``[..., outcome_size]``."""
        read = self.spec.distribution.encode(actions, rewards.dtype)
        return torch.cat([read, rewards.unsqueeze(-1), done.to(rewards.dtype).unsqueeze(-1)], dim=-1)

    def unroll(self, state: Trial, batch: Batch) -> tuple[Tensor, Trial]:
        """Go once more through one episode in each lane; the state is that of its last valid step.

        Outputs ``[task, episode, time, model_outputs]`` are those with which ``predict`` acted.
        """
        rollout = rollout_of(batch)
        tasks, episodes, time = rollout.rewards.shape
        last_step = rollout.mask.sum(2).long().unsqueeze(-1) - 1
        done = torch.arange(time, device=last_step.device) == last_step
        outcomes = self._outcomes(rollout.actions, rollout.rewards, done)
        before = torch.cat([state.last.expand(-1, episodes, -1).unsqueeze(2), outcomes[:, :, :-1]], dim=2)
        seen = torch.cat([rollout.observations.reshape(tasks, episodes, time, -1), before], dim=-1).flatten(0, 1)
        start = state.units.expand(-1, episodes, -1).flatten(0, 1)
        said, units = self.network.run_to(state.params, start, seen, last_step.flatten())
        after = Trial(state.params, units.reshape(tasks, episodes, -1), _at(outcomes, last_step))
        return said.reshape(tasks, episodes, time, -1), after

    def adapt(self, state: Trial, batch: Batch) -> Trial:
        return self.unroll(state, batch)[1]

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """PPO's clipped surrogate on all steps of each task's trials, through all of which it is differentiated."""
        state, outputs = self.begin(params, experience.descriptors), []
        trial = [rollout_of(batch) for batch in (*experience.supports, experience.query)]
        for batch in trial:
            said, state = self.unroll(state, batch)
            outputs.append(said)
        losses = objectives.clipped_surrogate(
            self.spec.distribution, torch.cat(outputs, dim=2), joined(trial), self.options.clip
        )
        return losses, {}


def outcome_size(spec: Spec) -> int:
    """Width of an action (one-hot where it is discrete), its reward, and 1 if the episode ended by it."""
    return spec.distribution.numbers + 2


def _at(values: Tensor, step: Tensor) -> Tensor:
    """Values ``[task, episode, time, width]`` at a step ``[task, episode, 1]`` of each lane."""
    return values.gather(2, step.unsqueeze(-1).expand(-1, -1, 1, values.shape[-1])).squeeze(2)
