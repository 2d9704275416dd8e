"""``metarl predict``: what a model that ``metarl adapt`` saved says of files."""

from metarl.commands.predict.predicting import prepare

__all__ = ["prepare"]
