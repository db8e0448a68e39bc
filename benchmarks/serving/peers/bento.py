"""The same model as a BentoML service."""

import os

import bentoml
import numpy as np
from catboost import CatBoostRegressor


@bentoml.service(workers=1)
class Forecasts:
    """Forecasts feature rows."""

    def __init__(self) -> None:
        self.model = CatBoostRegressor().load_model(os.environ["MODEL"])

    @bentoml.api
    def predict(self, rows: list[list[float]]) -> list[float]:
        """Forecast each row."""
        forecasts: list[float] = self.model.predict(np.array(rows, dtype=np.float32)).tolist()
        return forecasts
