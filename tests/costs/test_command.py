"""`autopeft estimate`, as people and programs call it."""

import json
from pathlib import Path

import pytest
import transformers
from click.testing import CliRunner

from autopeft.cli import main

LORA = '{"blocks": [{"lora": {"rank": 2, "roles": ["query"]}}]}'
SPACE = "quantization: [none]\nblocks:\n  lora: {rank: [1, 2], roles: [[query]]}\n"


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["estimate", *arguments, "--sequence-length", "16", "--task", "causal-lm"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.fixture
def space(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(SPACE)
    return str(path)


def test_one_design(llama_config: str, tmp_path: Path):
    code, output = run(llama_config, "--design", LORA)
    assert code == 0, output
    assert output.startswith("LoRA r=2 on query\nbatches of 8 x 16 tokens, float32, adamw, sdpa attention on cpu\n")
    assert "peak memory" in output
    file = tmp_path / "design.json"
    file.write_text(LORA)
    code, output = run(llama_config, "--design", str(file), "--json", "--optimizer", "sgd", "--batch-size", "2")
    values = json.loads(output)
    assert values["trainable_params"] == 2 * 2 * (64 + 64)
    assert values["design"]["blocks"][0]["lora"]["rank"] == 2
    assert values["peak_memory"] == sum(values["at_peak"].values())


def test_the_memory_of_a_step_is_drawn(llama_config: str, tmp_path: Path):
    picture = tmp_path / "memory.png"
    code, output = run(llama_config, "--design", LORA, "--plot", str(picture))
    assert code == 0, output
    assert output.rstrip().endswith("memory.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()
    picture.mkdir()
    code, output = run(llama_config, "--design", LORA, "--plot", str(picture))
    assert code == 2
    assert "is a directory" in output


def test_a_head_that_no_task_has(tmp_path: Path):
    transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=16
    ).save_pretrained(tmp_path)
    code, output = run(
        str(tmp_path), "--design", LORA, "--json", "--head", "AutoModelForImageClassification", "--batch-size", "1"
    )
    assert code == 0, output
    assert json.loads(output)["head_params"] == 2 * (32 + 1)
    assert json.loads(output)["trainable_params"] == 2 * (32 + 1) + 2 * 2 * (32 + 32)


def test_designs_of_a_space(llama_config: str, space: str):
    arguments = (llama_config, "--space", space, "--samples", "9", "--budget", "trainable_params=300")
    code, output = run(*arguments)
    assert code == 0, output
    assert "small: 9 of 9 draws are legal designs" in output
    assert "budget    trainable_params 300" in output
    assert "smallest  256, " in output
    values = json.loads(run(*arguments, "--json")[1])
    assert values["quantiles"]["trainable_params"]["smallest"] == 256
    assert values["quantiles"]["trainable_params"]["largest"] == 512
    assert 0 < values["feasible_share"] < 1
    assert values["n_over"]["trainable_params"] == round((1 - values["feasible_share"]) * 9)


def test_seconds_are_measured_where_asked(llama_config: str, space: str):
    code, output = run(llama_config, "--design", LORA, "--batch-size", "1", "--measure")
    assert code == 0, output
    assert "measured here" in output
    values = json.loads(run(llama_config, "--space", space, "--samples", "2", "--measure", "--json")[1])
    assert 0 < values["step_seconds"]["smallest"] <= values["step_seconds"]["largest"]


@pytest.mark.slow
def test_what_fits(llama_config: str, space: str):
    code, output = run(llama_config, "--fit", str(2**21), "--space", space)
    assert code == 0, output
    assert "2.0 MiB for LlamaForCausalLM: 16 tokens, float32, adamw, cpu" in output
    rows = [line.split() for line in output.splitlines()]
    assert {row[0] for row in rows if row[-5:] == ["LoRA", "r=8", "on", "query,", "value"]} == {"none", "int8", "nf4"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}"], "nothing is asked; give --design"),
        (["{model}", "--design", LORA, "--space", "lora"], "--design goes with neither --space nor --fit"),
        (["{model}", "--design", LORA, "--fit", "1GiB"], "--design goes with neither --space nor --fit"),
        (["{model}", "--design", LORA, "--budget", "peak_memory=1GiB"], "--samples and --budget are about"),
        (["{model}", "--space", "lora", "--space", "hybrid"], "--space must be given once without --fit"),
        (["{model}", "--space", "lora", "--samples", "0"], "--samples >= 1 must hold, but got 0"),
        (["{model}", "--space", "lara"], "did you mean 'lora'"),
        (["{model}", "--space", "lora", "--budget", "peak_memory=8 gigs"], "budget.peak_memory must be a number or"),
        (["{model}", "--space", "lora", "--budget", "peak_memory"], "is not COST=AMOUNT"),
        (["{model}", "--fit", "24 gigs"], "must be a number or a text such as '8GiB', but got '24 gigs'"),
        (["{model}", "--fit", "0"], "must be above 0, but got '0'"),
        (["{model}", "--fit", "1GiB", "--plot", "x.png"], "--plot draws the memory of one design"),
        (["{model}", "--fit", "1GiB", "--measure"], "--measure times --design, or predicts the time of --space"),
        (["{model}", "--design", "none.json"], "--design must be a JSON object, or a file that holds one, but"),
        (["{model}", "--design", "{"], "--design must be JSON, but"),
        (["{model}", "--design", "[" + "1, " * 200], "--design must be JSON, but"),
        (["{model}", "--design", "x" * 300], "(File name too long)"),
        (["{model}", "--design", "{model}"], "(Is a directory)"),
        (["{model}", "--design", LORA, "--head", "Trainer"], "begins with AutoModel, such as AutoModelForImage"),
        (["{model}", "--design", LORA, "--plot", "x.txt"], "a plot must end in .png, .pdf, .svg, but got 'x.txt'"),
        (["{model}", "--design", LORA, "--plot", "no/x.png"], "a plot needs a folder that is there"),
        (["{model}", "--design", LORA, "--optimizer", "adam"], "'adam' is not one of 'adamw', 'adamw_8bit', 'sgd'"),
        (["{model}", "--design", '{"blocks": [{"lora": {"rank": 99}}]}'], "rank <= hidden_size must hold"),
        (["nobody/nothing", "--design", LORA], "'nobody/nothing' is no folder here and the hub says"),
    ],
)
def test_a_mistake_is_one_line(llama_config: str, arguments: list[str], message: str):
    code, output = run(*(argument.replace("{model}", llama_config) for argument in arguments))
    assert code == 2
    assert message in " ".join(output.split())
