"""Exceptions for what a user can get wrong; the command line prints them as one line and exits with 2."""


class AsaError(Exception):
    """Base of every error whose cause is outside this code: an argument, a file, the data, a model."""


class InputError(AsaError, ValueError):
    """An argument, a configuration or a value in the data is not usable."""


class DataFileError(AsaError, FileNotFoundError):
    """A file or folder that was asked for is not there."""


class OutputExistsError(AsaError, FileExistsError):
    """The output folder already holds a run."""


class NonFiniteLossError(AsaError, FloatingPointError):
    """A term of the training loss became NaN or infinite."""


class Terminated(KeyboardInterrupt):
    """SIGTERM asked the program to stop; it ends as after Ctrl-C."""
