"""The service most would write first: FastAPI, pydantic and the model, one process under uvicorn."""

import os

import numpy as np
from catboost import CatBoostRegressor
from fastapi import FastAPI
from pydantic import BaseModel

model = CatBoostRegressor().load_model(os.environ["MODEL"])
app = FastAPI()


class Rows(BaseModel):
    """Feature rows."""

    rows: list[list[float]]


class Forecasts(BaseModel):
    """A forecast a row."""

    forecasts: list[float]


@app.post("/predict")
def predict(body: Rows) -> Forecasts:
    """Forecast each row."""
    return Forecasts(forecasts=model.predict(np.array(body.rows, dtype=np.float32)).tolist())
