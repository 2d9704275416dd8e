"""Meta-World (arXiv 1910.10897, 2505.11289) as task families for metarl: ML1, ML10 and ML45, and its own evaluation."""

from importlib import metadata

from packaging.requirements import Requirement

OLDEST = "3.1.1"
INSTALL = (
    "install it apart from other MuJoCo projects, from metarl's repository: "
    "pip install -c plugins/metaworld/constraints.txt . plugins/metaworld"
)


def misfit(oldest: str = OLDEST) -> str | None:
    """Return what is wrong with the installed versions of metaworld and MuJoCo, if anything."""
    try:
        version = metadata.version("metaworld")
    except metadata.PackageNotFoundError:
        return "metaworld is not installed"
    wanted = [Requirement(f"metaworld>={oldest}"), *map(Requirement, metadata.requires("metaworld") or [])]
    for one in wanted:
        if one.name in ("metaworld", "mujoco") and one.marker is None:
            found = metadata.version(one.name)
            if not one.specifier.contains(found, prereleases=True):
                return f"{one} is needed, but {one.name} {found} is installed beside metaworld {version}"
    return None


if problem := misfit():
    raise ImportError(f"{problem}; {INSTALL}")
