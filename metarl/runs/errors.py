"""The exception for run folders that cannot be used."""


class RunError(ValueError):
    """A run folder cannot be used. The message says what is wrong with it and what to do."""
