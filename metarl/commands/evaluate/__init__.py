"""``metarl evaluate RUN_OR_GROUP``: scores after 0..k adaptation steps on held-out tasks."""

from metarl.commands.evaluate.command import prepare

__all__ = ["prepare"]
