"""A recipe says what it means or is refused by the name of the key that is wrong."""

from pathlib import Path
from typing import Any

import pytest

from diffasr.errors import RecipeError
from diffasr.train.stages import PARTS, Recipe, Stage

RECIPE = """
name = "tiny"
init = "../init"
features = ["a", "/data/b"]
dev = "dev"
seed = 3

[shares]
en = 0.5
hi = 1

[[stage]]
name = "ctc"
steps = 10
rates = { projector = 1e-3 }
diffusion = 0.0
ctc = 1.0

[[stage]]
name = "denoise"
steps = 20
rates = { conditioning = 1e-3, lora = 1e-4 }
"""


def write(folder: Path, text: str) -> Path:
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    return folder / "recipe.toml"


def stage(**changes: Any) -> Stage:
    return Stage(**({"name": "s", "steps": 5, "rates": {"decoder": 1e-3}} | changes))


def recipe(**changes: Any) -> Recipe:
    base = {"name": "r", "init": Path(), "features": (Path(),), "dev": Path(), "stages": (stage(),)}
    return Recipe(**(base | changes))


def test_a_recipe_is_read_with_paths_seen_from_its_folder(tmp_path: Path) -> None:
    read = Recipe.load(write(tmp_path, RECIPE))
    assert read == Recipe.load(tmp_path), "the folder will do"
    assert (read.init, read.dev) == (tmp_path / "../init", tmp_path / "dev")
    assert read.features == (tmp_path / "a", Path("/data/b"))
    assert read.shares == {"en": 0.5, "hi": 1}
    assert (read.seed, read.folder) == (3, tmp_path)
    first, second = read.stages
    assert (first.name, first.steps, first.rates, first.diffusion, first.ctc) == ("ctc", 10, {"projector": 1e-3}, 0, 1)
    assert second == Stage(name="denoise", steps=20, rates={"conditioning": 1e-3, "lora": 1e-4}), "the rest is default"


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.parent.glob("recipes/mini/*.toml")), ids=str)
def test_the_recipes_of_this_repository_are_valid(path: Path) -> None:
    assert Recipe.load(path).stages


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('name = "tiny"', "name = ", "recipe.toml: "),
        ('dev = "dev"', "", "lacks 'dev'"),
        ("[[stage]]", "[[stages]]", "lacks 'stage'"),
        ("seed = 3", "sed = 3", "recipe has no key sed; it has .*seed"),
        ("steps = 10", "step = 10", "stage has no key step; it has .*steps"),
        ("steps = 10", "", "stage: .*steps"),
        ("steps = 10", 'steps = "ten"', "stage: "),
        ('name = "tiny"', "", "recipe: .*name"),
        ("hi = 1", "xx = 1", r"shares names \['xx'\]; languages are en"),
        ('name = "denoise"', 'name = "ctc"', "a name of its own"),
        (RECIPE[RECIPE.index("[[stage]]") :], '[stage]\nname = "ctc"', "of another kind"),
        ('init = "../init"', "init = 5", "of another kind"),
        ("seed = 3", "augment = 3", "of another kind"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, old: str, new: str, match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        Recipe.load(write(tmp_path, RECIPE.replace(old, new)))


def test_a_recipe_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(b'name = "caf\xe9"')
    with pytest.raises(RecipeError, match=r"recipe\.toml: .*utf-8"):
        Recipe.load(tmp_path)


def test_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe at .*recipe\.toml"):
        Recipe.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rates": {"ears": 1e-3}}, "ears.*parts are"),
        ({"rates": {}}, "rates names nothing"),
        ({"rates": {"decoder": -1e-3}}, "rates"),
        ({"rates": {"decoder": 1e-3, "lora": 1e-3}}, "not both"),
        ({"scripts": ("DEVANAGARI",)}, "scripts is for rates that have embedding"),
        ({"steps": 0}, "steps"),
        ({"seconds": 0}, "seconds"),
        ({"warmup": -1}, "warmup"),
        ({"slack": -1}, "slack"),
        ({"lora_rank": 0}, "lora_rank"),
        ({"encoder_layers": 0}, "encoder_layers"),
        ({"distil": -0.5}, "loss weights"),
        ({"teaches": ("en", "xx")}, "teaches names"),
        ({"clip": 0.0}, "clip"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"ctc_extra": -1}, "ctc_extra"),
            ({"blur": -0.1}, "blur"),
        ({"diffusion": 0.0}, "loss weights"),
        ({"ar": -0.5}, "loss weights"),
        *(
            ({name: value}, f"{name} is a share")
            for name in (
                "ar_share", "full_share", "draft_share", "draft_noise", "hint_drop", "audio_drop", "dropout", "mask",
                "conditioned_share", "unroll_share", "final_rate", "ema", "ar_draft", "drift", "diffusion_share",
                "smoothing",
            )
            for value in (-0.1, 1.1, float("nan"))
        ),
    ],
    ids=str,
)  # fmt: skip
def test_a_stage_out_of_range_fails_at_construction(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(RecipeError, match=f"stage s: .*{match}"):
        stage(**changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"stages": ()}, "each stage"),
        ({"stages": (stage(name="model"),)}, "not model"),
        ({"stages": (stage(), stage())}, "a name of its own"),
        ({"evaluate_every": 0}, "evaluate_every"),
        ({"evaluate_count": 0}, "evaluate_count"),
        ({"save_every": 0}, "save_every"),
        ({"shares": {"en": -1.0}}, "shares"),
        ({"shares": {"en": 0.0}}, "shares"),
        ({"shares": {}}, "shares"),
    ],
    ids=str,
)
def test_a_recipe_out_of_range_fails_at_construction(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(RecipeError, match=f"r: .*{match}"):
        recipe(**changes)


def test_every_part_may_train_and_defaults_are_valid() -> None:
    assert recipe(shares={"en": 1.0, "de": 0.0}).shares == {"en": 1.0, "de": 0.0}
    for part in PARTS:
        assert stage(rates={part: 1e-3}).rates == {part: 1e-3}
