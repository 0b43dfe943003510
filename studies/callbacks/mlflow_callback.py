"""A callback that logs a search to MLflow: one run for the search, and a nested run for every trial that ended.

    pip install mlflow-skinny
    autopeft.search(..., callbacks=[MlflowCallback(experiment="reviews")])

A callback is any function of one `autopeft.Event`; this one shows all that an event holds.
"""

import time
from typing import Any

import autopeft

STATUS = {"failed": "FAILED", "out_of_memory": "FAILED", "interrupted": "KILLED"}
"""What MLflow calls the outcomes that are no success; every other is FINISHED."""


class MlflowCallback:
    """Logs trials to MLflow as they end.

    Args:
        experiment: Made where it does not exist yet.
        run_name: Of the search.
        tracking_uri: Of the server or the folder; as MLflow is configured by default.
    """

    def __init__(self, experiment: str = "autopeft", run_name: str = "search", tracking_uri: str | None = None) -> None:
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise ImportError("MlflowCallback needs mlflow; pip install mlflow-skinny") from error
        self._client: Any = MlflowClient(tracking_uri=tracking_uri)
        known = self._client.get_experiment_by_name(experiment)
        self._experiment = known.experiment_id if known else self._client.create_experiment(experiment)
        self._run_name = run_name
        self._parent: str | None = None
        self._started: dict[int, int] = {}

    def __call__(self, event: autopeft.Event) -> None:
        """Log one event."""
        now = round(time.time() * 1000)
        parent = self._search_run(now)
        if event.kind == "started":
            self._started[event.trial.number] = now
            self._client.update_run(parent, status="RUNNING")
        if event.kind == "finished":
            self._log_trial(event, parent, now)
            self._log_progress(event, parent, now)

    def _search_run(self, now: int) -> str:
        if self._parent is None:
            run = self._client.create_run(self._experiment, start_time=now, run_name=self._run_name)
            self._parent = run.info.run_id
        return self._parent

    def _log_trial(self, event: autopeft.Event, parent: str, now: int) -> None:
        from mlflow.entities import Metric, Param, RunTag

        trial = event.trial
        tags = {
            "mlflow.parentRunId": parent,
            "outcome": trial.outcome.value,
            "design": trial.design.describe(),
            "serving": trial.estimate.serving,
            "baseline": trial.baseline,
            "continues": "" if trial.continues is None else str(trial.continues),
            "reason": trial.reason,
        }
        run = self._client.create_run(
            self._experiment,
            start_time=self._started.pop(trial.number, now),
            run_name=f"trial-{trial.number}",
            tags={name: value for name, value in tags.items() if value},
        ).info.run_id
        self._client.log_batch(
            run,
            metrics=[Metric(name, value, now, trial.examples) for name, value in metrics_of(trial).items()],
            params=[Param(name, str(value)) for name, value in params_of(trial).items()],
            tags=[RunTag("autopeft.trial", str(trial.number))],
        )
        self._client.set_terminated(run, status=STATUS.get(trial.outcome.value, "FINISHED"), end_time=now)

    def _log_progress(self, event: autopeft.Event, parent: str, now: int) -> None:
        progress, step = event.progress, event.trial.number
        for name in ("n_started", "n_complete", "n_stopped", "n_infeasible", "n_failed"):
            self._client.log_metric(parent, name, getattr(progress, name), timestamp=now, step=step)
        if progress.best is not None:
            self._client.log_metric(parent, f"best_{event.metric}", progress.best, timestamp=now, step=step)
        if progress.n_running == 0:  # no event says that a search is over: it is whenever nothing runs
            self._client.set_terminated(parent, end_time=now)


def params_of(trial: Any) -> dict[str, Any]:
    """Return a design as flat parameters: `lora.rank`, `lora.layers`, `lora.learning_rate`, `quantization`."""
    params: dict[str, Any] = {"quantization": trial.design.quantization, "seed": trial.seed}
    for block in trial.design.blocks:
        ((kind, settings),) = block.to_dict().items()
        place = kind
        while f"{place}.layers" in params:  # a second block of one kind, in other layers
            place += "+"
        params |= {f"{place}.{name}": value for name, value in settings.items()}
    return params | {f"{name}.learning_rate": rate for name, rate in trial.learning_rates.items()}


def metrics_of(trial: Any) -> dict[str, float]:
    """Return scores with their standard errors, predicted costs and measured ones."""
    costs = {name: value for name, value in trial.estimate.to_dict().items() if isinstance(value, int)}
    measured = {f"measured_{name}": value for name, value in trial.measured.to_dict().items() if value is not None}
    errors = {f"{name}_se": value for name, value in trial.standard_errors.items()}
    return {name: float(value) for name, value in {**trial.scores, **errors, **costs, **measured}.items()}
