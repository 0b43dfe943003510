"""A study: everything that `autopeft.search` is asked, validated, as one value."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from autopeft.errors import AutopeftError, StudyError
from autopeft.spec import plugins
from autopeft.spec.cost import Budget
from autopeft.spec.design import Design
from autopeft.spec.location import check_output_dir, check_study_name, is_file, is_uri, working_folder
from autopeft.spec.messages import MAX_ECHO, cut, echo, explain, first_complaint, nearest, one_of
from autopeft.spec.objective import find_objective
from autopeft.spec.storage_url import check_storage, without_password
from autopeft.spec.task import DEFAULT_TASK, load_task
from autopeft.spec.training import Splits, Training
from autopeft.spec.units import parse_seconds
from autopeft.spec.yaml_file import MAX_DEPTH, YamlFile, is_too_deep, read_yaml, read_yaml_file
from autopeft.spec.yardstick import DEFAULT_YARDSTICK


def _rates(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _seconds(value: Any) -> Any:
    return value if value is None else parse_seconds(value)


class EarlyStopping(BaseModel):
    """Successive halving: where trials are compared, and how many go on.

    Attributes:
        rungs: Fractions of the full training at which trials are compared, rising, below 1.
        eta: One in `eta` of the trials of a cost stratum goes on from each rung.
        strata: Number of cost strata: trials compete with trials of about the same cost.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rungs: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.25, 0.5)
    eta: Annotated[float, Field(gt=1)] = 2.0
    strata: Annotated[int, Field(ge=1)] = 3

    @field_validator("rungs")
    @classmethod
    def _rising(cls, rungs: tuple[float, ...]) -> tuple[float, ...]:
        if list(rungs) != sorted(set(rungs)):
            raise ValueError("rungs must rise")
        return rungs


class RayOptions(BaseModel):
    """Workers on Ray.

    Attributes:
        address: Of a running cluster (`auto`, or host:port), which may grow while the search runs; None starts a local
            Ray for the search.
        workers: Another name of the study's `n_workers`; both, where both are given, are the same.
        cpus_per_worker: Cores, and threads, of each worker; None shares this machine's cores out evenly.
        gpus_per_worker: GPUs of each worker, below 1 to share one; None gives each a whole one where there are any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["ray"] = "ray"
    address: str | None = None
    workers: Annotated[int, Field(ge=1)] | None = None
    cpus_per_worker: Annotated[int, Field(ge=1)] | None = None
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None


class StudySpec(BaseModel):
    """What a search is asked; the same keys in Python, in a study file and after `--set`.

    Attributes:
        model: Hub id or local folder.
        revision: Branch, tag or commit of the hub id.
        trust_remote_code: Whether Python code that the model brings may run.
        data: Path to csv, json, jsonl, parquet or a saved data set; hub id.
        columns: Column by role, where it cannot be guessed: text, text_pair, label, group; for causal-lm text, or
            prompt and completion, or messages, and group.
        splits: Where the training, validation and test examples come from.
        task: What the model is trained for.
        training: How designs are trained: length, batches, schedule, precision, device.
        metric: The quality metric that fronts and rungs use; the task's default where none is given.
        space: A name in search_spaces/, a path, or the values of a space.
        objectives: At least one quality metric and one cost; the metric and `trainable_params` where not given.
        budget: Limits by cost objective, such as `{"trainable_params": "2%", "peak_memory": "8GiB"}`, or relative to
            what the yardstick costs, `{"peak_memory": "0.9x yardstick"}`; see `autopeft.Budget`.
        n_trials: Designs that start training; refused designs and the yardstick do not count.
        timeout: Of one call from its beginning to its end, with preparation, the final check and the report: seconds,
            or a text such as `2h`; None for no limit. Nothing is begun that has no time to be scored.
        executor: `local` trains in this process; `ray`, or the values of `RayOptions`, in `n_workers` others.
        n_workers: Designs that train at the same time.
        study_name: Name of the study, and of its folder in `output_dir`. The same name goes on with the same study.
        early_stopping: Whether weak designs stop before the end: `auto`, `off`, or the values of `EarlyStopping`.
        seed: Of the sampler, of new weights, of batch order and of dropout.
        storage: Where the record is kept: None for a journal in the study's folder; the address of a PostgreSQL
            database, `postgresql://user@host/database`, which several searches of one `study_name` share, each with
            an `output_dir` of its own; or `sqlite:///file`. A password comes from PGPASSWORD or ~/.pgpass; one in the
            address is used, and neither shown nor kept.
        output_dir: Where studies lie: a folder; or an address that fsspec knows, such as `s3://bucket/runs`, which a
            search elsewhere goes on from (`s3://` needs the package s3fs, `gs://` gcsfs, `abfs://` adlfs).
        work_dir: Folder in which a study at an address is worked on here; one in the user's cache by default.
        grace_seconds: What is left after SIGTERM, as schedulers give it (Slurm and Kubernetes: 30 s): what runs is
            checkpointed within it, or the search ends as if it had been killed. Seconds, or a text such as `2m`.
        sampler: `auto` is Optuna's multi-objective TPE.
        yardstick: A design trained besides; None for none. One over the budget is trained as a reference: shown beside
            the front and never on it.
        full_fine_tuning: Whether the whole model is trained besides, as a reference that is never on the front and
            that the budget does not apply to; it is left out where it needs more memory than the device has. A
            learning rate, or a list of them to train it once with each, in the place of `true`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    revision: str | None = None
    trust_remote_code: bool = False
    data: str
    columns: dict[str, str] = Field(default_factory=dict)
    splits: Splits = Splits()
    task: str = DEFAULT_TASK
    metric: str | None = None
    space: str | dict[str, Any] = "hybrid"
    objectives: tuple[str, ...]
    budget: dict[str, str | int | float] = Field(default_factory=dict)
    training: Training = Training()
    n_trials: Annotated[int, Field(gt=0)] = 64
    timeout: Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(_seconds)] = None
    study_name: str = "study"
    output_dir: str = "runs"
    work_dir: str | None = None
    grace_seconds: Annotated[Annotated[float, Field(gt=0)], BeforeValidator(_seconds)] = 25.0
    storage: Annotated[str | None, Field(repr=False)] = None
    sampler: str = "auto"
    early_stopping: Literal["auto", "off"] | EarlyStopping = "auto"
    executor: Literal["local", "ray"] | RayOptions = "local"
    n_workers: Annotated[int, Field(gt=0)] = 1
    seed: Annotated[int, Field(ge=0)] = 0
    yardstick: dict[str, Any] | None = DEFAULT_YARDSTICK
    full_fine_tuning: Annotated[bool | tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_rates)] = False

    @field_validator("study_name")
    @classmethod
    def _name_is_a_folder(cls, name: str) -> str:
        return check_study_name(name)

    @field_validator("output_dir")
    @classmethod
    def _address_without_password(cls, output_dir: str) -> str:
        return check_output_dir(output_dir)

    @field_validator("storage")
    @classmethod
    def _storage_is_an_address(cls, url: str | None) -> str | None:
        return None if url is None else check_storage(url)

    @field_serializer("storage")
    def _keep_no_password(self, url: str | None) -> str | None:
        return None if url is None else without_password(url)

    @model_validator(mode="before")
    @classmethod
    def _objectives_of_the_task(cls, values: Any) -> Any:
        """Fill in what is optimised where nothing is said: the task's metric, or the one asked for, and a cost."""
        if not isinstance(values, Mapping) or values.get("objectives") is not None:
            return values
        metric = values.get("metric") or load_task(str(values.get("task", DEFAULT_TASK))).default_metric
        return {**values, "objectives": (metric, "trainable_params")}

    @field_validator("sampler")
    @classmethod
    def _known_sampler(cls, sampler: str) -> str:
        if sampler not in (known := ("auto", *plugins.names("autopeft.samplers"))):
            raise ValueError(f"a sampler {one_of(known, sampler)}")
        return sampler

    @field_validator("objectives", mode="before")
    @classmethod
    def _known_objectives(cls, names: Any) -> Any:
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise ValueError("objectives is a list of names")
        kinds = [find_objective(str(name)).kind for name in names]
        if len(set(names)) != len(names):
            raise ValueError("each objective is named once")
        if "quality" not in kinds or "cost" not in kinds:
            raise ValueError("a search needs at least one quality metric and one cost")
        return tuple(names)

    @field_validator("space", mode="before")
    @classmethod
    def _space_ends(cls, space: Any) -> Any:
        if is_too_deep(space):
            raise ValueError(f"a space may be {MAX_DEPTH} levels deep at most")
        return space

    @field_validator("budget", mode="before")
    @classmethod
    def _known_limits(cls, limits: Any) -> Any:
        if isinstance(limits, Budget):
            return dict(limits.limits)
        if not isinstance(limits, Mapping):
            raise ValueError('budget is limits by name, such as {"trainable_params": "2%"}')
        Budget(limits)
        return dict(limits)

    @field_validator("yardstick")
    @classmethod
    def _yardstick_is_a_design(cls, design: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        if design is not None:
            Design.from_dict(design)
        elif relative := Budget(info.data.get("budget")).relative:
            name, text = next(iter(relative.items()))
            raise ValueError(
                f"a study with budget.{name}={text!r} needs a yardstick; set one, or give budget.{name} as an amount"
            )
        return design

    @field_validator("executor", mode="before")
    @classmethod
    def _known_executor(cls, executor: Any) -> Any:
        if not isinstance(executor, Mapping | RayOptions) and executor not in ("local", "ray"):
            keys = ", ".join(name for name in RayOptions.model_fields if name != "type")
            raise ValueError(f"executor is local, ray, or {{type: ray}} with {keys}")
        return executor

    @model_validator(mode="before")
    @classmethod
    def _workers_have_two_names(cls, values: Any) -> Any:
        """Take `executor.workers` as `n_workers`, where that is not given."""
        if not isinstance(values, Mapping) or values.get("n_workers") is not None:
            return values
        executor = values.get("executor")
        workers = executor.get("workers") if isinstance(executor, Mapping) else getattr(executor, "workers", None)
        return values if workers is None else {**values, "n_workers": workers}

    @field_validator("n_workers")
    @classmethod
    def _one_worker_here(cls, n_workers: int, info: ValidationInfo) -> int:
        executor = info.data.get("executor")
        if executor == "local" and n_workers != 1:
            raise ValueError("executor local has n_workers=1, in this process; take executor=ray for more")
        if isinstance(executor, RayOptions) and executor.workers not in (None, n_workers):
            raise ValueError(f"executor.workers={executor.workers} is another name of n_workers; give one of them")
        return n_workers

    @property
    def ray(self) -> RayOptions | None:
        """Return how workers run on Ray, or None where they do not."""
        if self.executor == "local":
            return None
        return RayOptions() if self.executor == "ray" else self.executor

    @property
    def folder(self) -> Path:
        """Return the local folder that the study writes: `output_dir/study_name`, or the working folder of that."""
        return working_folder(self.location, self.work_dir)

    @property
    def location(self) -> str:
        """Return where the study lies: `output_dir/study_name`, a path or an address."""
        if is_uri(self.output_dir):
            return f"{self.output_dir}/{self.study_name}"
        return str(Path(self.output_dir) / self.study_name)

    @property
    def halving(self) -> EarlyStopping | None:
        """Return how trials are stopped early, or None."""
        if self.early_stopping == "off":
            return None
        return EarlyStopping() if self.early_stopping == "auto" else self.early_stopping

    def to_dict(self) -> dict[str, Any]:
        """Return the study as JSON-ready values."""
        return self.model_dump(mode="json")


def make_study(values: Mapping[str, Any], *, file: YamlFile | None = None) -> StudySpec:
    """Validate a study.

    Args:
        values: The keys of `StudySpec`.
        file: Where the values came from, so that errors name the line.

    Raises:
        StudyError: A key is unknown, missing or has an illegal value.
        BudgetError, DesignError: The same for the budget and for the yardstick.
    """
    try:
        return StudySpec(**values)
    except ValidationError as error:
        first = first_complaint(error)
        known = list(_known_keys(first["loc"]))
        place = f"{file.place('.'.join(map(str, first['loc'])))}: " if file is not None else ""
        raise StudyError(place + explain(error, known=known)) from None
    except AutopeftError as error:
        raise type(error)(f"{file.name}: {error}" if file is not None else str(error)) from None


def _known_keys(location: tuple[int | str, ...]) -> Sequence[str]:
    nested: dict[str, type[BaseModel]] = {
        "training": Training,
        "splits": Splits,
        "early_stopping": EarlyStopping,
        "executor": RayOptions,
    }
    model = nested.get(str(location[0]), StudySpec) if len(location) > 1 else StudySpec
    return list(model.model_fields)


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> StudySpec:
    """Read a study file, put overrides over it, and validate the result.

    Relative paths of the model, the data and the space are relative to the file; `output_dir` is
    relative to the working folder.

    Args:
        path: A YAML file.
        overrides: Texts `key=value`; a dot reaches into a key, the value is YAML.

    Raises:
        StudyError: The file is missing or no YAML, or a key or value is not understood.
    """
    path = Path(path)
    if not is_file(path):
        raise StudyError(f"a study must be a YAML file that exists, but got {echo(str(path))}")
    file = read_yaml_file(path, error=StudyError)
    values = file.plain()
    for override in overrides:
        _override(values, override)
    for key in ("model", "data", "space"):
        value = values.get(key)
        if isinstance(value, str) and _exists(path.parent / value):
            values[key] = str(path.parent / value)
    return make_study(values, file=file)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no system takes
        return False


def _override(values: dict[str, Any], text: str) -> None:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise StudyError(f"--set takes key=value, but got {echo(text)}")
    *parents, last = name.split(".")
    if (parents and parents[0] not in StudySpec.model_fields) or (not parents and last not in StudySpec.model_fields):
        known = list(StudySpec.model_fields)
        hint = nearest((parents or [last])[0], known)
        raise StudyError(f"--set {cut(name, MAX_ECHO)} is not a known key{hint}; known keys: {', '.join(known)}")
    node = values
    for parent in parents:
        child = node.get(parent)
        node[parent] = child = dict(child) if isinstance(child, Mapping) else {}
        node = child
    node[last] = read_yaml(f"value: {value}", name=f"--set {name}", error=StudyError).plain()["value"]
