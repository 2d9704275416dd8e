"""Meta-train MAML-TRPO on ML1 reach, and score it on the test tasks: by metarl, and by Meta-World's own protocol.

Run by hand, in Meta-World's environment: ``python plugins/metaworld/benchmarks/reach.py --iterations 100``. A run that
exists is gone on with. Scores of the untrained policy, the same steps on the same tasks, stand beside.
"""

import argparse
from pathlib import Path

import gymnasium
from metaworld.evaluation import metalearning_evaluation

from metarl import MAML, Sampling, Settings, evaluate, open_run, resume, train
from metarl.evaluation import table
from metarl.seeding import stream
from metarl_metaworld.agent import MetaLearningAgent
from metarl_metaworld.families import ML1


def main() -> None:
    """Train, evaluate, print."""
    options = parse()
    if not (options.out / "checkpoint.pt").exists():
        family = ML1(options.env, sampling=Sampling(options.episodes, options.horizon))
        settings = Settings(options.iterations, options.tasks, seed=options.seed, checkpoint_every=5)
        train(MAML(step_size=0.1), family, settings=settings, out=options.out, overwrite=True, quiet=False)
    elif open_run(options.out).iteration < options.iterations:
        resume(options.out, options.iterations, quiet=False)
    report(options)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="reach-v3")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--tasks", type=int, default=10, help="of a meta-batch; twice as many to evaluate on")
    parser.add_argument("--episodes", type=int, default=5, help="per task and step")
    parser.add_argument("--horizon", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/metaworld-reach"))
    return parser.parse_args()


def report(options: argparse.Namespace) -> None:
    """Print the scores on test tasks."""
    run = open_run(options.out)
    untrained = run.learner.init(stream(options.seed, "initialisation"))
    for name, params in (("untrained", untrained), (f"{run.iteration} iterations", run.params)):
        print(f"\n{name}\n{table(evaluate(run.learner, params, run.family, 2 * options.tasks, 2).metrics)}")
    # Meta-World deals its 50 tasks out to the environments, which must divide them.
    told = {"env_name": options.env, "seed": 0, "meta_batch_size": 10, "max_episode_steps": options.horizon}
    envs = gymnasium.make_vec("Meta-World/ML1-test", **told)
    success, mean_return, _ = metalearning_evaluation(
        MetaLearningAgent(run), envs, num_evals=1, adaptation_episodes=options.episodes
    )
    envs.close()
    print(f"\nMeta-World's protocol, one step: success rate {success:.3f}, return {mean_return:.1f}")


if __name__ == "__main__":
    main()
