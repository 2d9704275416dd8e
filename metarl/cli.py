"""The command line. It imports only the standard library until a command needs more, so ``metarl list`` is fast."""

import difflib
import importlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata

from metarl import plugins, safety

USAGE = """usage: metarl COMMAND ...

  list [tasks|algorithms|outers|recipes|pretrained]
                                       list installed plugins, recipes or trained runs, and where they come from
  train ALGORITHM TASKS [options]      meta-train, e.g. metarl train maml point-navigation --outer trpo
  tune ALGORITHM TASKS [options]       search for the options that validate best, with Optuna
  resume RUN [options]                 continue a run exactly where it stopped
  evaluate RUN [options]               score 0..k adaptation steps on held-out tasks
  compare RUN RUN [RUN ...]            compare scores on the same tasks: differences, intervals, a picture
  report RUN [RUN ...]                 write a page of HTML: what runs are, curves, scores, comparisons
  show RUN                             what a run is, how far it is, and its scores
  adapt RUN --data|--env ... --out PATH
                                       adapt to your own examples or environment, and save what comes out
  predict MODEL FILES                  classes or values of files, by what adapt saved
  plot RUN [RUN ...]                   draw learning curves and adaptation curves
  render RUN [options]                 film a policy before and after adaptation
  export RUN --to sb3 PATH             save the meta-learnt policy as a Stable-Baselines3 model
  baseline ALGORITHM TASKS [options]   train an SB3 algorithm (ppo, sac) on the same tasks, for comparison
  check PLUGIN [options]               test a plugin against the contract, and show what fails and where
  new tasks|algorithm|outer NAME       create a small, working plugin package to start from

ALGORITHM, TASKS and PLUGIN are installed names or module:attribute. 'metarl COMMAND --help' shows a command's options,
and 'metarl train ALGORITHM TASKS --help' also those of the algorithm, the tasks and the outer update. In place of RUN,
most commands take a group of seeds: the folder that 'metarl train ... --seeds 0 1 2' fills."""

COMMANDS = (
    "train", "tune", "resume", "evaluate", "compare", "report", "show", "adapt", "predict", "plot", "render", "export",
    "baseline", "check", "new",
)  # fmt: skip
"""Commands with a module in ``metarl.commands``. It is imported only when the command is used."""

TOGETHER = ("train", "tune", "resume")
"""Commands that torchrun may start in several processes: on one run, or in tune on trials of one study."""

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130
STOPPED_BY = 128
"""Plus the number of the signal that stopped training: 130 for Ctrl-C, 143 for SIGTERM, as shells have it."""

_EXITED = "a plugin has ended the program instead of raising an error: sys.exit"

Execute = Callable[[], int]
"""A valid request, ready to run. Returns the exit code."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done. 2: the request was invalid; one line on standard error says why. 1: it failed while running, with a
    traceback; the last checkpoint is intact. 130: stopped by Ctrl-C; 128 + number: by another signal.
    """
    if arguments is None:
        _make_usual_process()
    with safety.harmless_streams():
        return _finished(sys.argv[1:] if arguments is None else arguments)


def _finished(arguments: list[str]) -> int:
    try:
        code = _run(arguments)
        sys.stdout.flush()  # flush here, where a closed pipe is caught, not when Python shuts down
    except KeyboardInterrupt:
        print("metarl: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has exited (metarl list | head). Discard the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if getattr(error, "is_told", False):  # a file or a folder is to blame, and no code
            print(f"metarl: {_one_line(error)}", file=sys.stderr)
        else:
            traceback.print_exc()
        return FAILED
    return code


def _make_usual_process() -> None:
    """Give this process what most have: open streams that take any text, and a plotting backend that needs no window.

    A daemon may have closed its streams. A notebook names a backend of its own, which only notebooks can import.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest number that is free
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8")  # noqa: SIM115  # to the end
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    os.environ["MPLBACKEND"] = "agg"


def _run(arguments: list[str]) -> int:
    _warn_of_namesakes()
    try:
        execute = _prepare(arguments)
    except (ValueError, ImportError, plugins.PluginError) as error:
        print(f"metarl: {_one_line(error)}", file=sys.stderr)
        return WRONG
    except SystemExit as stop:
        if {"-h", "--help"}.isdisjoint(arguments):
            raise RuntimeError(f"{_EXITED}({stop.code})") from stop
        return int(stop.code or DONE)
    try:
        return execute()
    except SystemExit as stop:
        raise RuntimeError(f"{_EXITED}({stop.code})") from stop


def _one_line(error: BaseException) -> str:
    notes: list[str] = getattr(error, "__notes__", [])
    return safety.harmless("; ".join(" ".join(str(part).split()) for part in (error, *notes)))


def _warn_of_namesakes() -> None:
    """Warn about another distribution that installs a package named metarl, such as an old one of this project.

    The one installed last overwrites the other's ``metarl/__init__.py``, and removes it when it is uninstalled.
    """
    if any(metadata.distributions(name="metarl")) or not hasattr(sys.modules["metarl"], "_HOMES"):
        print(
            "metarl: a package called metarl is, or was, installed beside metarl-toolkit, and replaces its files: "
            "pip uninstall metarl metarl-toolkit, then install metarl-toolkit again",
            file=sys.stderr,
        )


def _prepare(arguments: list[str]) -> Execute:
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help"):
        return lambda: _say(USAGE)
    if name == "--version":
        return _version
    if name == "list":
        return _list(rest)
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, ("list", *COMMANDS), n=1)
        hint = "".join(f"; did you mean {command!r}?" for command in nearest)
        raise ValueError(f"unknown command {name!r}{hint}; 'metarl --help' lists them")
    if name not in TOGETHER and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError(
            f"metarl {name} runs in one process, and WORLD_SIZE={os.environ['WORLD_SIZE']}: start it without torchrun; "
            f"{', '.join(TOGETHER[:-1])} and {TOGETHER[-1]} run in several"
        )
    # OpenMP's waiting threads spin for milliseconds, which slows a shared machine down. torch reads this at import.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        plugins.search_too(os.getcwd())
    except FileNotFoundError:  # torch's libraries cannot be loaded from nowhere
        raise ValueError("the working folder was deleted; change to another one (cd) and try again") from None
    prepare: Callable[[list[str]], Execute] = importlib.import_module(f"metarl.commands.{name}").prepare
    if "torch" in sys.modules:  # which some commands do without
        importlib.import_module("metarl.speed").limit_threads()
    return prepare(rest)


def _say(text: str) -> int:
    print(safety.harmless(text))
    return DONE


def _version() -> int:
    return _say(f"metarl {metadata.version('metarl-toolkit')}")


def _list(arguments: list[str]) -> Execute:
    groups: dict[str, plugins.Group] = {"algorithms": "algorithms", "tasks": "tasks", "outers": "outers"}
    if arguments in (["recipes"], ["pretrained"]):
        text = _recipes() if arguments == ["recipes"] else _pretrained()  # now: a damaged file is a wrong request
        return lambda: _say(text)
    if len(arguments) > 1 or (arguments and arguments[0] not in (*groups, "-h", "--help")):
        raise ValueError(
            "metarl list takes 'tasks', 'algorithms', 'outers', 'recipes', 'pretrained' or nothing, not "
            f"{' '.join(arguments)!r}"
        )
    if arguments and arguments[0] not in groups:
        return lambda: _say(USAGE)
    chosen = [groups[arguments[0]]] if arguments else list(groups.values())
    return lambda: _say(_tables(chosen))


def _recipes() -> str:
    return _named("recipes:", [(recipe.name, recipe.reached) for recipe in plugins.recipes()])


def _pretrained() -> str:
    found = [(run.name, f"{run.trained}: {run.reached}  [{run.package}]") for run in plugins.pretrained()]
    return _named("pretrained (metarl evaluate pretrained:NAME):", found)


def _named(head: str, told: Sequence[tuple[str, str]]) -> str:
    """Return a head, and a line for each name with what is told of it."""
    width = max((len(name) for name, _ in told), default=0)
    lines = [f"  {name:<{width}}  {text}" for name, text in told]
    return "\n".join([head, *(lines or ["  none installed"])])


def _tables(groups: list[plugins.Group]) -> str:
    found = plugins.available(*groups)
    return "\n\n".join(_table(group, [plugin for plugin in found if plugin.group == group]) for group in groups)


def _table(group: plugins.Group, found: list[plugins.Plugin]) -> str:
    width = max([len(plugin.name) for plugin in found], default=0)
    lines = []
    for plugin in found:
        description = f"BROKEN: {plugin.problem}" if plugin.problem else plugin.summary
        lines.append(f"  {plugin.name:<{width}}  {description}  [{plugin.package} {plugin.version}]")
    return "\n".join([f"{group}:", *(lines or ["  none installed"])])


if __name__ == "__main__":
    sys.exit(main())
