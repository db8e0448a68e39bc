"""What a model's number says."""

import pytest

from bike_assets.core.errors import ContractError
from bike_assets.core.versions import Recipe, SemanticVersion, next_version

FEATURES = ("mean4", "horizon")
PARAMS = {"family": "catboost", "depth": 6}
RECIPE = Recipe.of(FEATURES, 2, PARAMS)
NEWEST = SemanticVersion(1, 4, 9), RECIPE


@pytest.mark.parametrize(
    ("recipe", "number"),
    [
        (RECIPE, "1.4.10"),
        (Recipe.of(FEATURES, 2, {**PARAMS, "depth": 7}), "1.5.0"),
        (Recipe.of(FEATURES, 2, {**PARAMS, "family": "random_forest"}), "1.5.0"),
        (Recipe.of(FEATURES, 3, PARAMS), "2.0.0"),
        (Recipe.of((*FEATURES, "rain"), 2, {**PARAMS, "depth": 7}), "2.0.0"),
        (Recipe.of(FEATURES[::-1], 2, PARAMS), "2.0.0"),
    ],
    ids=[
        "newer data",
        "other settings",
        "other family",
        "other bundle",
        "other inputs",
        "other order of inputs",
    ],
)
def test_what_raises_which_part(recipe: Recipe, number: str) -> None:
    assert str(next_version(NEWEST, recipe)) == number


def test_the_first_model_is_1_0_0() -> None:
    assert str(next_version(None, RECIPE)) == "1.0.0"


def test_numbers_are_ordered_as_numbers() -> None:
    assert SemanticVersion.parse("1.10.0") > SemanticVersion.parse("1.9.12")
    assert SemanticVersion.parse("2.0.0") > SemanticVersion.parse("1.99.99")
    assert SemanticVersion.parse("1.4.2") == SemanticVersion(1, 4, 2)


@pytest.mark.parametrize("text", ["", "1", "1.2", "1.2.3.4", "v1.2.3", "1.2.-3", "a.b.c"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ContractError, match="no semantic version"):
        SemanticVersion.parse(text)
