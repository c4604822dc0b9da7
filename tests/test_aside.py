"""Commands are quiet: what only int8 and int4 need is imported for these alone."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from diffasr.model import aside
from diffasr.model.aside import kept_aside, let_in


def test_what_is_kept_aside_is_not_found_until_it_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "PACKAGES", ("colorsys", "json"))
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with kept_aside():
        assert find_spec("colorsys") is None and find_spec("json") is not None, "json is in use"
        with pytest.raises(ImportError):
            __import__("colorsys")
        let_in("colorsys")
        let_in("nothing")
        assert find_spec("colorsys") is not None
    with pytest.raises(ZeroDivisionError), kept_aside():
        raise ZeroDivisionError
    assert find_spec("colorsys") is not None, "afterwards all is as before"


def test_info_of_the_26b_system_prints_its_table_and_no_warning() -> None:
    call = [sys.executable, "-m", "diffasr", "info", "26b", "--offline"]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("part") and "licence of google/" in done.stdout
    assert done.stderr == ""
