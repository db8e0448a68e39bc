"""The process that opens champions: it says what this one would say, and may die, hang or be told nonsense."""

import os
import signal
import subprocess
import sys

import pytest

from bike_assets.core.errors import BundleError
from bike_serving import loading
from bike_serving.forecasts import ForecastTable
from bike_serving.loading import Loader, LoaderError


@pytest.fixture
def paths(city):
    return city.write("1"), city.home / "keys" / "bundle.pub"


@pytest.fixture
def loader():
    loader = Loader()
    yield loader
    loader.close()


def test_it_computes_what_this_process_computes_and_is_replaced_when_it_dies(loader, paths, city):
    here = loading.compute(*paths)
    loader.start()
    assert loader.compute(*paths) == here
    first = loader._process
    os.kill(first.pid, signal.SIGKILL)
    assert loader.compute(*paths) == here
    assert loader._process is not first
    bundle = city.load(paths[0])
    assert here.vintage().equals(bundle.forecast())
    assert ForecastTable.unpacked(here) == ForecastTable.of(bundle.issue_date, bundle.forecast())
    with pytest.raises(BundleError, match="no such directory") as refused:
        loader.compute(paths[0].with_name("0" * 32), paths[1])
    with pytest.raises(BundleError, match="no such directory") as refused_here:
        loading.compute(paths[0].with_name("0" * 32), paths[1])
    assert str(refused.value) == str(refused_here.value)
    second = loader._process
    loader.close()
    assert second.poll() is not None


def test_one_that_hangs_is_given_up(loader, paths, monkeypatch):
    loader.start()
    hanging = loader._process
    hanging.send_signal(signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(loading, "PATIENCE_SECONDS", 0.2)
        with pytest.raises(LoaderError, match=r"not opened in 0\.2 s"):
            loader.compute(*paths)
    assert hanging.poll() is not None
    assert loader.compute(*paths).rows


def test_it_ends_when_there_is_nothing_to_do():
    idle = (
        "from bike_serving import loading; loading.IDLE_SECONDS = 0.01; loading.main()",
        "from bike_serving import loading; loading.main()",
    )
    for code, told in zip(idle, (subprocess.PIPE, subprocess.DEVNULL), strict=True):
        with subprocess.Popen([sys.executable, "-c", code], stdin=told) as process:
            assert process.wait(60) == 0


def test_neither_it_nor_the_service_needs_what_models_are_trained_with(paths):
    code = f"""
import sys
sys.modules.update(dict.fromkeys(("catboost", "sklearn", "pandas", "scipy", "pyarrow", "mlflow", "dagster")))
import bike_serving.app
from pathlib import Path
from bike_serving import loading
assert loading.compute(Path({str(paths[0])!r}), Path({str(paths[1])!r})).rows
"""
    subprocess.run([sys.executable, "-c", code], check=True)
