"""The tree of errors: one root, a built-in kind each, and nothing in between."""

import inspect

import pytest

from diffasr import errors

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind is not errors.DiffasrError]


def test_all_kinds_are_found() -> None:
    names = {kind.__name__ for kind in CLASSES}
    assert names == {"AudioError", "ModelError", "ManifestError", "RecipeError", "OptionError", "DownloadError"}


@pytest.mark.parametrize("kind", CLASSES)
def test_each_is_a_diffasr_error_and_one_built_in_kind(kind: type[Exception]) -> None:
    root, built_in = kind.__bases__
    assert root is errors.DiffasrError
    assert built_in is (OSError if kind is errors.DownloadError else ValueError)
    assert kind.__doc__


@pytest.mark.parametrize("kind", CLASSES)
def test_message_survives(kind: type[Exception]) -> None:
    with pytest.raises(errors.DiffasrError, match="a clear message"):
        raise kind("a clear message")
