"""No file can bring code: nothing is unpickled, evaluated or imported because a file says so."""

import ast
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import autopeft
from autopeft.models import base, loading, model_files
from autopeft.spec.study import StudySpec
from tests.api.conftest import tiny_study
from tests.tasks.generated import reviews, save_tiny_bert

ROOT = Path(autopeft.__file__).parent
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
"""What can run code that a file brings; YAML is read by ruamel's safe reader."""
CALLS = {"torch.load", "np.load", "numpy.load", "pd.read_pickle", "pandas.read_pickle", "eval", "exec", "compile"}

OPEN_ALL = """
import json, sys, warnings
warnings.simplefilter("ignore")
import pickle, torch

def watch(event, arguments):
    if event == "pickle.find_class":
        raise SystemExit(f"unpickled {arguments}")

def refuse(*arguments, **settings):
    raise SystemExit("torch.load was called")

torch.load = refuse
sys.addaudithook(watch)
import autopeft
from autopeft.searching.replay import replay

study = json.loads(sys.argv[1])
autopeft.search(**study, n_trials=1)
result = autopeft.search(**{**study, "n_trials": 2})
assert len(result.front)
result = autopeft.open(result.state.folder)
result.report(result.state.folder / "again.html")
result.leaderboard()
assert replay(result.state).agrees
folder = result.export(result.front[0], result.state.folder / "exported")
autopeft.load(folder)
autopeft.predict(folder, study["data"], columns={"text": "text"}, limit=4)
print("watched")
"""


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_reads_what_can_run(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.partition(".")[0] for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in MODULES
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in CALLS, f"line {node.lineno}"
            assert not any(k.arg == "allow_pickle" for k in node.keywords), f"line {node.lineno}"


def test_the_hook_sees_an_unpickling() -> None:
    """What the next test relies on."""
    code = OPEN_ALL.partition("import autopeft")[0] + "pickle.loads(pickle.dumps(json.JSONDecoder))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "unpickled" in ended.stderr


@pytest.mark.slow
def test_a_study_is_searched_resumed_and_read_without_unpickling(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    reviews(300).to_csv(tmp_path / "reviews.csv", index=False)
    model = save_tiny_bert(tmp_path / "model")
    study = tiny_study(model, str(tmp_path / "reviews.csv"), tmp_path, trainable_params="50%")
    del study["n_trials"]
    ended = subprocess.run(
        [sys.executable, "-c", OPEN_ALL, json.dumps(study)], capture_output=True, text=True, env={**os.environ}
    )
    assert "watched" in ended.stdout, ended.stderr[-3000:]
    lines = (tmp_path / "runs" / "tiny" / "search.jsonl").read_text().splitlines()
    assert {json.loads(line)["event"] for line in lines} >= {"started", "finished"}


def test_code_that_a_model_brings_is_not_run_unasked() -> None:
    assert StudySpec.model_fields["trust_remote_code"].default is False
    for function in (base.load_base, base.build_meta, model_files.locate, loading.read_tokenizer):
        assert inspect.signature(function).parameters["trust_remote_code"].default is False
    assert (
        loading.Checkpoint(name="x", folder=Path(), head=base.Head(auto_class="AutoModel")).trust_remote_code is False
    )


@pytest.mark.parametrize(
    "name", ["..", ".", "", "a/b", "/etc", "a\\b", "a\0b", "a b", "a\nb", "..\\..", "x" * 300, "~"]
)
def test_a_study_is_named_by_what_any_folder_may_be_called(name: str) -> None:
    from autopeft.errors import StudyError
    from autopeft.spec.study import make_study

    with pytest.raises(StudyError, match="study_name"):
        make_study({"model": "bert", "data": "x.csv", "study_name": name})
