"""What can be wrong with a notebook; the command line prints it as it prints errors of asa_mini."""

from asa_mini.errors import AsaError


class NotebookError(AsaError, RuntimeError):
    """A notebook could not be run, or one of its cells failed."""
