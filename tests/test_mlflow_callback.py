"""The example callback, with MLflow itself: what a search leaves there."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

import autopeft
from autopeft.spec.trial import Outcome
from tests.api.conftest import reviews_csv, study, tiny_bert

__all__ = ["reviews_csv", "study", "tiny_bert"]

FILE = Path(__file__).parents[1] / "studies" / "callbacks" / "mlflow_callback.py"


@pytest.fixture
def example() -> Any:
    """Return the module of the example."""
    spec = importlib.util.spec_from_file_location("mlflow_callback", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # of MLflow, in SQLAlchemy
def test_every_trial_is_a_nested_run(example: Any, study: dict[str, Any], tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    callback = example.MlflowCallback(experiment="reviews", run_name="tiny", tracking_uri=uri)
    result = autopeft.search(**study, callbacks=[callback])
    assert isinstance(result, autopeft.SearchResult)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("reviews")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    nested = {int(run.data.tags["autopeft.trial"]): run for run in runs if run is not parent}
    ended = {t.number: t for t in result.state.trials if t.outcome is not Outcome.INFEASIBLE}
    assert nested.keys() == ended.keys()
    for number, run in nested.items():
        trial = ended[number]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["outcome"] == trial.outcome.value
        assert run.info.status == "FINISHED"
        assert run.data.metrics["accuracy"] == pytest.approx(trial.scores["accuracy"])
        assert run.data.metrics["trainable_params"] == trial.estimate.trainable_params
        assert run.data.params["quantization"] == trial.design.quantization
        for block in trial.design.blocks:
            ((kind, settings),) = block.to_dict().items()
            assert run.data.params[f"{kind}.layers"] == str(settings["layers"])
    assert parent.info.status == "FINISHED"
    best = max(t.scores["accuracy"] for t in ended.values() if t.outcome is Outcome.COMPLETE)
    assert parent.data.metrics["best_accuracy"] == pytest.approx(best)


def test_without_mlflow_the_way_out_is_named(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ImportError, match="pip install mlflow-skinny"):
        example.MlflowCallback()
