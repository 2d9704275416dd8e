"""The distribution that an algorithm chooses for its policies."""

from dataclasses import replace

from metarl.types import Spec


def chosen(spec: Spec, name: str) -> Spec:
    """Return spec with policies of another distribution, such as ``squashed``.

    Raises:
        ValueError: the spec is one of labelled examples, there is no distribution of this name, or it is one of other
            actions than those of spec.
    """
    if not spec.control:
        raise ValueError(f"distribution={name!r}: only policies have one, and this family is for {spec.kind}")
    found = replace(spec, policy=name)
    fits = found.distribution.actions == spec.kind and found.distribution.action_shape == spec.distribution.action_shape
    if not fits:
        raise ValueError(
            f"distribution={name!r} is for other actions than this family's, which are {spec.kind}"
            f"{f' with {len(spec.choices)} choices' if spec.choices else ''}: leave it out, for "
            f"{spec.distribution.name}"
        )
    return found
