"""Made-up data for tests of the mathematics: rollouts and examples of any shape, without an environment."""

from dataclasses import replace
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import Generator, Tensor

from metarl.control import collect
from metarl.fewshot.classification import NWayKShot
from metarl.types import Examples, Experience, Learner, Params, Rollout, Spec, State, policy_of, select

CONTINUOUS = Spec((3,), 2, "continuous")
DISCRETE = Spec((3,), 4, "discrete")


def rollout(spec: Spec, tasks: int, generator: Generator, episodes: int = 3, horizon: int = 5) -> Rollout:
    """Episodes of random lengths under a made-up policy near the uniform or the standard normal one."""
    shape = (tasks, episodes, horizon)
    observations = torch.randn(*shape, *spec.input_shape, generator=generator)
    outputs = 0.3 * torch.randn(*shape, spec.model_outputs, generator=generator)
    actions = spec.distribution.sample(outputs, generator)
    log_probs = spec.distribution.log_prob(outputs, actions)
    lengths = torch.randint(2, horizon + 1, (tasks, episodes, 1), generator=generator)
    mask = (torch.arange(horizon) < lengths).to(observations.dtype)
    advantages = torch.randn(shape, generator=generator) * mask
    rewards = torch.randn(shape, generator=generator) * mask
    ends = torch.arange(1, horizon + 1) == lengths
    return Rollout(
        observations=observations,
        last_observations=torch.randn(tasks, episodes, *spec.input_shape, generator=torch.Generator().manual_seed(1)),
        actions=actions,
        log_probs=log_probs,
        rewards=rewards,
        terminated=ends & (lengths < horizon),
        truncated=torch.zeros_like(ends),
        mask=mask,
        advantages=advantages,
    )


def by_hand(
    observations: Tensor, actions: Tensor, log_probs: Tensor, rewards: Tensor, mask: Tensor, advantages: Tensor
) -> Rollout:
    """A rollout of given numbers, whose episodes end by termination."""
    ends = (mask - torch.cat([mask[:, :, 1:], torch.zeros_like(mask[:, :, :1])], dim=2)).bool()
    return Rollout(
        observations=observations,
        last_observations=observations[:, :, -1],
        actions=actions,
        log_probs=log_probs,
        rewards=rewards,
        terminated=ends,
        truncated=torch.zeros_like(ends),
        mask=mask,
        advantages=advantages,
    )


def collected(env: VectorEnv, learner: Learner, state: State, *arguments: Any) -> Rollout:
    """Collect episodes of a learner's policies; ``arguments`` are those of ``collect``."""
    return collect(env, learner.spec, policy_of(learner, state), *arguments)


def acted(learner: Learner, params: Params, experience: Experience, generator: Generator) -> Experience:
    """Let the actions be those of the learner's own policies at params, as sampling would have it."""
    supports = []
    with torch.no_grad():
        state = learner.begin(params, experience.descriptors)
        for batch in experience.supports:
            supports.append(_act(learner, state, batch, generator))
            state = learner.adapt(state, supports[-1])
        query = _act(learner, state, experience.query, generator)
        return replace(experience, supports=tuple(supports), query=query)


def _act(learner: Learner, state: State, batch: Rollout, generator: Generator) -> Rollout:
    outputs, _ = learner.predict(state, batch.observations)
    actions = learner.spec.distribution.sample(outputs, generator)
    return replace(batch, actions=actions, log_probs=learner.spec.distribution.log_prob(outputs, actions))


def experience(learner: Learner, params: Params, tasks: int = 4, seed: int = 0) -> Experience:
    """Experience of ``learner.adaptations`` adaptations to made-up data, acted by the learner itself."""
    generator = torch.Generator().manual_seed(seed)
    spec = learner.spec
    if not spec.control:
        supports = (examples(spec, tasks, generator),) * learner.adaptations
        return Experience(descriptors=torch.zeros(tasks, 0), supports=supports, query=examples(spec, tasks, generator))
    batches = [rollout(spec, tasks, generator) for _ in range(learner.adaptations + 1)]
    return acted(
        learner,
        params,
        Experience(descriptors=torch.zeros(tasks, 0), supports=tuple(batches[:-1]), query=batches[-1]),
        generator,
    )


def few_shot(spec: Spec, tasks: int = 3, items: int = 5) -> Experience:
    """Experience of one adaptation to made-up examples, whoever learns from them."""
    generator = torch.Generator().manual_seed(0)
    support, query = (examples(spec, tasks, generator, items) for _ in range(2))
    return Experience(descriptors=torch.zeros(tasks, 0), supports=(support,), query=query)


def chosen(given: Experience, tasks: slice | torch.Tensor) -> Experience:
    """Some tasks of an experience of examples."""

    return select(given, tasks)


def initial(learner: Learner) -> Params:
    """Parameters off their start, where biases are all the same and policies nearly uniform."""
    params = learner.init(torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    return {name: value + 0.3 * torch.randn(value.shape, generator=generator) for name, value in params.items()}


def examples(spec: Spec, tasks: int, generator: Generator, items: int = 6) -> Examples:
    inputs = torch.randn(tasks, items, *spec.input_shape, generator=generator)
    if spec.kind == "classification":
        return Examples(inputs=inputs, targets=torch.randint(spec.output_size, (tasks, items), generator=generator))
    return Examples(inputs=inputs, targets=torch.randn(tasks, items, spec.output_size, generator=generator))


def classes(size: int, ways: int = 3, shots: int = 1) -> NWayKShot:
    """40 classes of 6 images of noise, ``size`` pixels wide."""
    images = torch.randint(256, (40, 6, 1, size, size), dtype=torch.uint8, generator=Generator().manual_seed(0))
    labels = torch.arange(40).repeat_interleave(6)
    return NWayKShot(images.flatten(0, 1), labels, ways=ways, shots=shots, rotations="train")
