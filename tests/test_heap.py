"""Giving free memory back changes nothing that is held, and is no error where it can't be done."""

import ctypes
import sys

import pytest
import torch

from diffasr.model.heap import give_back


def test_what_is_held_stays() -> None:
    held = [torch.full((n,), float(n)) for n in range(1, 2000, 7)]
    del held[::2]
    give_back()
    assert all(bool((value == len(value)).all()) for value in held)


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_other_systems_and_libraries_are_left_alone(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    give_back()
