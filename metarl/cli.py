"""The commands. The standard library only, until a command needs more: ``metarl list`` answers at once."""

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from importlib import metadata

from metarl import plugins

USAGE = """usage: metarl COMMAND ...

  list [tasks|algorithms|outers|recipes]
                                       what is installed, and which package offers it
  train ALGORITHM TASKS [options]      meta-train, e.g. metarl train maml point-navigation --outer trpo
  resume RUN [options]                 go on exactly where a run stopped
  evaluate RUN [options]               scores after 0..k adaptation steps on held-out tasks
  plot RUN [RUN ...]                   learning curves, adaptation curves, family pictures
  render RUN [options]                 a video of a policy before and after adaptation
  export RUN --to sb3 PATH             the meta-learnt policy as a Stable-Baselines3 model
  baseline ALGORITHM TASKS [options]   an SB3 algorithm (ppo, sac) on the same tasks, for comparison
  check PLUGIN [options]               run the contract on a plugin, and tell what fails and where
  new tasks|algorithm|outer NAME       write a small, working plugin package to start from

ALGORITHM, TASKS and PLUGIN are installed names or module:attribute. 'metarl COMMAND --help' tells a command's options,
and 'metarl train ALGORITHM TASKS --help' those of the algorithm and the tasks too."""

COMMANDS = ("train", "resume", "evaluate", "plot", "render", "export", "baseline", "check", "new")
"""Those with a module of their own in ``metarl.commands``, which is imported when its command is asked for."""

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130

Execute = Callable[[], int]
"""A request that was understood and found possible."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done. 2: the request was wrong; standard error tells why in one line. 1: it failed while running, with a
    traceback, and the last checkpoint is intact. 130: stopped by Ctrl-C.
    """
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()  # here, where a closed pipe is caught, and not when Python shuts down
    except KeyboardInterrupt:
        print("metarl: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (metarl list | head): nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception:
        traceback.print_exc()
        return FAILED
    return code


def _run(arguments: list[str]) -> int:
    _warn_of_namesakes()
    try:
        execute = _prepare(arguments)
    except (ValueError, plugins.PluginError) as error:
        print(f"metarl: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG
    except SystemExit as stop:  # --help was printed
        return int(stop.code or DONE)
    return execute()


def _warn_of_namesakes() -> None:
    """Tell of a package of another project, or of ours of old, that is imported as metarl, too.

    Whichever was installed last has the other's ``metarl/__init__.py``, and takes it away when it is uninstalled.
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
        hint = "".join(f"; did you mean {found!r}?" for found in nearest)
        raise ValueError(f"unknown command {name!r}{hint}; 'metarl --help' lists them")
    # OpenMP's waiting threads spin for milliseconds, which makes a shared machine crawl; torch reads this at import.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    sys.path.append(os.getcwd())  # so that module:attribute finds the modules that lie here
    prepare: Callable[[list[str]], Execute] = importlib.import_module(f"metarl.commands.{name}").prepare
    return prepare(rest)


def _say(text: str) -> int:
    print(text)
    return DONE


def _version() -> int:
    return _say(f"metarl {metadata.version('metarl-toolkit')}")


def _list(arguments: list[str]) -> Execute:
    groups: dict[str, plugins.Group] = {"algorithms": "algorithms", "tasks": "tasks", "outers": "outers"}
    if arguments == ["recipes"]:
        return lambda: _say(_recipes())
    if len(arguments) > 1 or (arguments and arguments[0] not in (*groups, "-h", "--help")):
        raise ValueError(
            f"metarl list takes 'tasks', 'algorithms', 'outers', 'recipes' or nothing, not {' '.join(arguments)!r}"
        )
    if arguments and arguments[0] not in groups:
        return lambda: _say(USAGE)
    chosen = [groups[arguments[0]]] if arguments else list(groups.values())
    return lambda: _say("\n\n".join(_table(group) for group in chosen))


def _recipes() -> str:
    lines = [f"  {recipe.name:<44}  {recipe.reached}" for recipe in plugins.recipes()]
    return "\n".join(["recipes:", *(lines or ["  none installed"])])


def _table(group: plugins.Group) -> str:
    found = plugins.available(group)
    width = max([len(plugin.name) for plugin in found], default=0)
    lines = [
        f"  {plugin.name:<{width}}  "
        + (f"BROKEN: {plugin.problem}" if plugin.problem else plugin.summary)
        + f"  [{plugin.package} {plugin.version}]"
        for plugin in found
    ]
    return "\n".join([f"{group}:", *(lines or ["  none installed"])])


if __name__ == "__main__":
    sys.exit(main())
