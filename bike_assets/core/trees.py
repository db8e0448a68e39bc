"""CatBoost's trees as plain arrays, evaluated without CatBoost: what asks a model needs no package that trains one.

Belongs here: reading trained symmetric trees out of a model, keeping them in a file, summing their leaves. Does not
belong here: training them, and explaining them (`bike_assets.core.families`), which are CatBoost's own.

A symmetric tree asks the same question of every row at each depth, so that a row's leaf is the number whose bits are
the answers (Prokhorenkova et al. 2018). Comparisons are of single precision and leaves are added tree by tree in
double precision, both as CatBoost does it: the sums are equal to the last bit.
"""

import json
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from bike_assets.core.correction import Array, Matrix

TREES_FILE = "trees.npz"

_NAMES: Final = ("feature", "border", "depth", "question", "leaf", "scale", "bias")
_BLOCK: Final = 8192
"""Rows at a time: their answers to all questions stay within some megabytes."""


class SymmetricTrees:
    """Trees of one output over numbers; an unknown number answers every question with no."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the arrays of `of`.

        Raises:
            ValueError, KeyError: an array is missing, or they do not fit each other.
        """
        self._arrays = {name: arrays[name] for name in _NAMES}
        depth, question, leaf = (self._arrays[name] for name in ("depth", "question", "leaf"))
        leaves = np.left_shift(1, depth.astype(np.int64))
        questions = len(self._arrays["border"])
        if (
            (len(question), len(leaf)) != (depth.sum(), leaves.sum())
            or len(self._arrays["feature"]) != questions
            or not ((question >= 0) & (question < questions)).all()
        ):
            raise ValueError("trees whose questions and leaves do not fit each other")

    @cached_property
    def _questions(self) -> list[tuple[int, np.float32]]:
        """Every question: of which input, and the border that it asks about."""
        return list(zip(self._arrays["feature"].tolist(), self._arrays["border"], strict=True))

    @cached_property
    def _trees(self) -> list[tuple[list[int], Array]]:
        """Every tree: its questions and its leaves."""
        depth, question, leaf = (self._arrays[name] for name in ("depth", "question", "leaf"))
        return list(
            zip(
                (part.tolist() for part in np.split(question, np.cumsum(depth)[:-1])),
                np.split(leaf, np.cumsum(np.left_shift(1, depth.astype(np.int64)))[:-1]),
                strict=True,
            )
        )

    @classmethod
    def of(cls, model: Any) -> Self:
        """The trees of a trained CatBoost model.

        Raises:
            ValueError: it has other trees or other inputs than these here.
        """
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.json"
            model.save_model(str(file), format="json")
            told = json.loads(file.read_text())
        trees = told.get("oblivious_trees")
        inputs = told["features_info"]["float_features"]
        splits = [split for tree in trees or () for split in tree["splits"] or ()]
        if (
            trees is None
            or any(split["split_type"] != "FloatFeature" for split in splits)
            or any(each["nan_value_treatment"] == "AsTrue" for each in inputs)
        ):
            raise ValueError("the model has trees or inputs of a kind that is not known here")
        column = {each["feature_index"]: each["flat_feature_index"] for each in inputs}
        asked = [(column[split["float_feature_index"]], np.float32(split["border"])) for split in splits]
        questions = sorted(set(asked))
        number = {question: i for i, question in enumerate(questions)}
        scale, (bias,) = told["scale_and_bias"]
        return cls(
            {
                "feature": np.array([feature for feature, _ in questions], dtype=np.int32),
                "border": np.array([border for _, border in questions], dtype=np.float32),
                "depth": np.array([len(tree["splits"] or ()) for tree in trees], dtype=np.int32),
                "question": np.array([number[question] for question in asked], dtype=np.int32),
                "leaf": np.array([leaf for tree in trees for leaf in tree["leaf_values"]], dtype=np.float64),
                "scale": np.array(scale, dtype=np.float64),
                "bias": np.array(bias, dtype=np.float64),
            }
        )

    def raw(self, inputs: Matrix) -> Array:
        """The sum of the leaves of every row of inputs [row, feature], CatBoost's `RawFormulaVal`."""
        total = np.zeros(len(inputs))
        for start in range(0, len(inputs), _BLOCK):
            self._add(np.asfortranarray(inputs[start : start + _BLOCK]), total[start : start + _BLOCK])
        return np.asarray(total * self._arrays["scale"] + self._arrays["bias"])

    def _add(self, inputs: Matrix, total: Array) -> None:
        rows = len(inputs)
        answers = np.empty((len(self._questions), rows), dtype=np.bool_)
        with np.errstate(invalid="ignore"):
            for answer, (feature, border) in zip(answers, self._questions, strict=True):
                np.greater(inputs[:, feature], border, out=answer)
        bits = list(answers.view(np.uint8))
        index, place, leaf = np.empty(rows, np.uint16), np.empty(rows, np.intp), np.empty(rows)
        for questions, leaves in self._trees:
            index.fill(0)
            for question in reversed(questions):
                np.add(index, index, out=index)
                np.add(index, bits[question], out=index)
            place[:] = index
            # No index is out of range; saying how to mend one spares looking for it.
            np.take(leaves, place, out=leaf, mode="wrap")
            np.add(total, leaf, out=total)

    def save(self, folder: Path) -> None:
        """Write `trees.npz`."""
        np.savez(folder / TREES_FILE, **self._arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `trees.npz`.

        Raises:
            OSError, ValueError, KeyError: it is missing or damaged.
        """
        with np.load(folder / TREES_FILE, allow_pickle=False) as stored:
            return cls({name: stored[name] for name in _NAMES})
