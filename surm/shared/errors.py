"""What goes wrong as expected: each message is one sentence for the person who typed the command."""


class UserError(Exception):
    """An expected error; scripts show its message, one sentence, and end with a non-zero exit code."""


class ConfigError(UserError, ValueError):
    """A command that cannot be run."""


class FormError(ConfigError):
    """A method that does not exist in the placement's form: a hole in a sweep over both, and an error alone."""


class RecordError(UserError, RuntimeError):
    """A record that contradicts what is asked now, or is damaged."""


class Claimed(RecordError):  # noqa: N818 (somebody else's work, no error)
    """A living process elsewhere works on the run."""


class StorageError(UserError, RuntimeError):
    """A file that cannot be written; the message names it."""


class RunError(UserError, RuntimeError):
    """A run that cannot go on; the message stands in its record."""


class LaunchError(UserError, RuntimeError):
    """A launcher of a sweep cannot go on."""


class TrackingError(UserError, RuntimeError):
    """W&B cannot be used as asked."""


class Interrupted(RuntimeError):  # noqa: N818 (asked for, no error)
    """A run was asked to stop: its checkpoint and record are written."""


class DataError(UserError, ValueError):
    """A data set that cannot be read as asked; the message names the file or row and the way out."""


class DataNotFoundError(DataError, FileNotFoundError):
    """Files of a data set that are not there."""


class ModelError(UserError, ValueError):
    """A model that cannot be loaded as asked; the message names the file or setting and the way out."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """Files of a model that are not there."""


def first_line(error: BaseException) -> str:
    """What an error of a library says first, to stand inside a sentence: one line, without its full stop."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (line if len(line) <= 300 else f"{line[:297]}...").rstrip(".: ")
