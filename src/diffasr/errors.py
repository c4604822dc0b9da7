"""Every error that diffasr raises on purpose.

Each is also a built-in kind, so that a caller may write ``except ValueError`` without knowing this
package. A message says what was wrong, which value, and what to do about it.
"""


class DiffasrError(Exception):
    """The root: ``except DiffasrError`` catches everything below and nothing else."""


class AudioError(DiffasrError, ValueError):
    """A recording that cannot be read, or samples that are not audio."""


class ModelError(DiffasrError, ValueError):
    """A checkpoint or its config is missing a part, or its parts do not fit together."""


class ManifestError(DiffasrError, ValueError):
    """A line of a data manifest is malformed or names something that does not exist."""


class RecipeError(DiffasrError, ValueError):
    """A training recipe has an unknown key or a value out of range."""


class OptionError(DiffasrError, ValueError):
    """An argument or option has a value that the function does not take."""


class DownloadError(DiffasrError, OSError):
    """A file could not be fetched, or what arrived is not what was asked for."""
