"""MAML-TRPO on point navigation as a plain loop over tasks, with one environment object for each episode.

The slow, obvious version of metarl's mathematics: the tests' reference, and what the benchmarks measure against. It
shares no code with metarl but the vocabulary of rollouts.
"""

import math

import numpy as np
import torch
from support import slow_baseline
from torch import Tensor
from torch.nn import functional

from metarl.types import Rollout, each_tensor

Params = dict[str, Tensor]


class PointEnv:
    """One point on its way to one goal, in NumPy."""

    def __init__(self, goal: np.ndarray, action_unit: float = 0.1) -> None:
        self.goal, self.action_unit = goal, action_unit

    def reset(self) -> np.ndarray:
        self.position = np.zeros(2)
        return self.position

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        self.position = self.position + np.clip(action * self.action_unit, -0.1, 0.1)
        offset = self.position - self.goal
        return self.position, -float(np.sqrt(offset @ offset)), bool((np.abs(offset) < 0.01).all())


def forward(params: Params, observations: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-std of a Gaussian tanh policy."""
    hidden = observations
    depth = sum(name.startswith("hidden_") and name.endswith("weight") for name in params)
    for index in range(depth):
        hidden = torch.tanh(functional.linear(hidden, params[f"hidden_{index}.weight"], params[f"hidden_{index}.bias"]))
    mean = functional.linear(hidden, params["head.weight"], params["head.bias"])
    return mean, params["policy.log_std"].expand_as(mean)


def distribution(params: Params, observations: Tensor) -> torch.distributions.Independent:
    mean, log_std = forward(params, observations)
    return torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp(), validate_args=False), 1)


def weighted_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum()


def inner_loss(surrogate: str, params: Params, rollout: Rollout) -> Tensor:
    """Loss of one task (fields without the task axis), episode by episode for dice."""
    log_probs = distribution(params, rollout.observations).log_prob(rollout.actions)
    if surrogate == "log_likelihood":
        return -weighted_mean(log_probs * rollout.advantages, rollout.mask)
    if surrogate == "likelihood_ratio":
        return -weighted_mean((log_probs - rollout.log_probs).exp() * rollout.advantages, rollout.mask)
    total = torch.zeros(())
    for episode in range(len(log_probs)):
        upto = torch.zeros(())
        for step in range(int(rollout.mask[episode].sum())):
            before, upto = upto, upto + log_probs[episode, step] - rollout.log_probs[episode, step]
            total = total + (upto.exp() - before.exp()) * rollout.advantages[episode, step]
    return -total / rollout.mask.sum()


def adapt(params: Params, rollout: Rollout, step_size: float, surrogate: str, create_graph: bool) -> Params:
    loss = inner_loss(surrogate, params, rollout)
    gradients = torch.autograd.grad(loss, list(params.values()), create_graph=create_graph)
    return {name: value - step_size * g for (name, value), g in zip(params.items(), gradients, strict=True)}


def task_of(rollout: Rollout, task: int) -> Rollout:
    return each_tensor(lambda values: values[task], rollout)


def flat(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def trpo_update(
    params: Params, supports: tuple[Rollout, ...], query: Rollout, step_size: float, surrogate: str = "log_likelihood"
) -> tuple[Params, Tensor]:
    """One TRPO step with exact Hessian products by double backward, recomputed for every product; and the gradient."""
    tasks = len(query.rewards)

    def adapted(theta: Params, task: int, create_graph: bool) -> Params:
        for support in supports:
            theta = adapt(theta, task_of(support, task), step_size, surrogate, create_graph)
        return theta

    def surrogate_and_kl(theta: Params, task: int, old: tuple[Tensor, Tensor], graph: bool) -> tuple[Tensor, Tensor]:
        rollout, own = task_of(query, task), adapted(theta, task, graph)
        new = distribution(own, rollout.observations)
        before = torch.distributions.Normal(old[0], old[1].exp(), validate_args=False)
        ratio = (new.log_prob(rollout.actions) - rollout.log_probs).exp()
        kl = torch.distributions.kl_divergence(torch.distributions.Independent(before, 1), new)
        return -weighted_mean(ratio * rollout.advantages, rollout.mask), weighted_mean(kl, rollout.mask)

    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    values = list(leaves.values())
    olds = []
    for task in range(tasks):
        mean, log_std = forward(adapted(leaves, task, False), query.observations[task])
        olds.append((mean.detach(), log_std.detach()))
    gradient, start = torch.zeros_like(flat(values)), 0.0
    for task in range(tasks):
        loss, _ = surrogate_and_kl(leaves, task, olds[task], True)
        gradient += flat(torch.autograd.grad(loss, values)) / tasks
        start += float(loss.detach()) / tasks

    def product(vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        for task in range(tasks):
            _, kl = surrogate_and_kl(leaves, task, olds[task], True)
            first = flat(torch.autograd.grad(kl, values, create_graph=True))
            total += flat(torch.autograd.grad(first @ vector, values)) / tasks
        return total + 1e-5 * vector

    solution, residual = torch.zeros_like(gradient), -gradient
    direction = residual.clone()
    for _ in range(10):
        image = product(direction)
        length = (residual @ residual) / (direction @ image)
        solution = solution + length * direction
        following = residual - length * image
        direction = following + (following @ following) / (residual @ residual) * direction
        residual = following
    full_step = solution * math.sqrt(2 * 0.01 / float(solution @ product(solution)))
    for attempt in range(15):
        pieces = (flat(values).detach() + 0.8**attempt * full_step).split([value.numel() for value in values])
        candidate = {
            name: piece.view_as(value).requires_grad_()
            for (name, value), piece in zip(leaves.items(), pieces, strict=True)
        }
        both = [surrogate_and_kl(candidate, task, olds[task], False) for task in range(tasks)]
        loss, kl = (sum(float(value[index].detach()) for value in both) / tasks for index in (0, 1))
        if loss < start and kl <= 0.01:
            return {name: value.detach() for name, value in candidate.items()}, gradient
    return params, gradient


def sample_task(goal: np.ndarray, params: Params, episodes: int, horizon: int, action_unit: float = 0.1) -> Rollout:
    """Episodes of one task (no task axis), each in an environment object of its own."""
    envs = [PointEnv(goal, action_unit) for _ in range(episodes)]
    observation = np.stack([env.reset() for env in envs])
    running = np.ones(episodes)
    dtype = torch.get_default_dtype()
    steps: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
    for _ in range(horizon):
        before = torch.as_tensor(observation, dtype=dtype)
        with torch.no_grad():
            policy = distribution(params, before)
            action = policy.sample()
            log_prob = policy.log_prob(action)
        rewards, mask = np.zeros(episodes), running.copy()
        for index, env in enumerate(envs):
            if running[index]:
                observation[index], rewards[index], arrived = env.step(action[index].double().numpy())
                running[index] = not arrived
        tensors = (torch.as_tensor(rewards, dtype=dtype), torch.as_tensor(mask, dtype=dtype))
        steps.append((before, action, log_prob, *tensors))
    fields = [torch.stack(values, dim=1) for values in zip(*steps, strict=True)]
    seen, actions, log_probs, rewards, mask = fields
    ends = torch.zeros_like(mask, dtype=torch.bool)
    return Rollout(
        observations=seen,
        last_observations=torch.as_tensor(observation, dtype=dtype),
        actions=actions,
        log_probs=log_probs,
        rewards=rewards,
        terminated=ends,
        truncated=ends,
        mask=mask,
        advantages=advantages(seen, torch.as_tensor(observation, dtype=dtype), rewards, mask),
    )


def advantages(observations: Tensor, last: Tensor, rewards: Tensor, mask: Tensor) -> Tensor:
    """Normalised reward-to-go less the baseline of the other episodes, for lambda = 1, of one task."""
    lengths, found = mask.sum(1).int().tolist(), torch.zeros_like(rewards)
    seen = torch.cat([observations, last.unsqueeze(1)], dim=1).double().numpy()
    episodes = slow_baseline.advantages(
        [np.concatenate([seen[index, :length], seen[index, -1:]]) for index, length in enumerate(lengths)],
        [rewards[index, :length].double().numpy() for index, length in enumerate(lengths)],
        [False] * len(lengths),
        mask.shape[1],
    )
    for index, own in enumerate(episodes):
        found[index, : len(own)] = torch.as_tensor(own, dtype=rewards.dtype)
    return found


def stack(rollouts: list[Rollout]) -> Rollout:
    """Join the rollouts of several tasks along a new first axis."""
    names = [name for name, value in vars(rollouts[0]).items() if value is not None]
    return Rollout(**{name: torch.stack([getattr(rollout, name) for rollout in rollouts]) for name in names})


def iteration(params: Params, goals: np.ndarray, episodes: int, horizon: int, step_size: float) -> Params:
    """One whole meta-iteration with a single inner step."""
    supports, queries = [], []
    for goal in goals:
        supports.append(sample_task(goal, params, episodes, horizon))
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        own = adapt(leaves, supports[-1], step_size, "log_likelihood", create_graph=False)
        queries.append(sample_task(goal, {name: value.detach() for name, value in own.items()}, episodes, horizon))
    return trpo_update(params, (stack(supports),), stack(queries), step_size)[0]
