"""What is raised where a run folder cannot be used."""


class RunError(ValueError):
    """A run folder that cannot be used as asked; says what is wrong with it and what to do."""
