"""`autopeft.estimate`: what one design costs."""

from collections.abc import Mapping
from typing import Any

from autopeft.costs.measured import Stopwatch, check_device
from autopeft.costs.model_costs import ModelCosts
from autopeft.costs.setting import Device, Dtype, Setting
from autopeft.spec.cost import Estimate
from autopeft.spec.design import Design
from autopeft.spec.model import Head
from autopeft.spec.task import DEFAULT_TASK
from autopeft.spec.training import Kernel, OptimizerName


def estimate(
    model: Any,
    design: Design | Mapping[str, Any],
    *,
    batch_size: int = 8,
    sequence_length: int = 128,
    dtype: Dtype = "float32",
    optimizer: OptimizerName = "adamw",
    checkpointing: bool = False,
    device: Device = "cpu",
    kernel: Kernel = "sdpa",
    task: str = DEFAULT_TASK,
    head: Head | None = None,
    n_steps: int = 1,
    revision: str | None = None,
    trust_remote_code: bool = False,
    measure: bool = False,
) -> Estimate:
    """Say what a design would cost to train, without weights, data or the device; seconds are measured where asked.

    ```python
    import transformers

    import autopeft

    config = transformers.LlamaConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=1000)
    cost = autopeft.estimate(config, {"blocks": [{"lora": {"rank": 8}}]}, task="causal-lm", sequence_length=32)
    print(cost)  # a table: parameters, memory at the peak by what it is for, FLOP, bytes on disk
    ```

    Args:
        model: Hub id; local folder, where a `config.json` is enough; configuration of transformers, or a model
            that has one (its weights are not read).
        design: A design, or its JSON form.
        batch_size: Examples in a training step, and in an evaluation step.
        sequence_length: Tokens of every example; images have the size that the model takes.
        dtype: What is computed in. Unquantized weights are fp32 in either case, and bfloat16 means autocast.
        optimizer: What makes the steps: `adamw`, `adamw_8bit` or `sgd`.
        checkpointing: Whether layers compute their activations again in the backward pass instead of keeping them.
        device: Where it would be trained: `cpu` or `cuda`, which need not be here. For a CPU it is this one, with the
            threads that torch has in this process: what its kernels take for themselves is asked of them.
        kernel: Attention kernel: `sdpa` or `eager`.
        task: What it would be trained for: `text-classification`, with two classes, or `causal-lm`.
        head: What the model has on top, where it is not what the task asks for, such as
            `autopeft.Head(auto_class="AutoModelForImageClassification", labels=("cat", "dog"))`.
        n_steps: Steps that `train_flops` covers.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Whether to run Python code that the model brings.
        measure: Whether to load the model onto the device, which must be here, and time the design there: its training
            steps, what it adds to a forward pass, and, for the prediction beside them, the steps of a small LoRA. It
            takes about ten seconds, more where a step takes seconds. A model without weights gets random ones.

    Returns:
        Every cost; `print` shows them as a table.

    Raises:
        ModelError: There is no such model, or its structure is not understood.
        DesignError: The design, or the length of its sequences, is illegal on this model; a setting is unknown; the
            device is to be measured on and is not here, or too small.
    """
    made = design if isinstance(design, Design) else Design.from_dict(design)
    setting = Setting(
        batch_size=batch_size,
        sequence_length=sequence_length,
        dtype=dtype,
        optimizer=optimizer,
        checkpointing=checkpointing,
        device=device,
        kernel=kernel,
        task=task,
        n_steps=n_steps,
    )
    if measure:
        check_device(setting)
    costs = ModelCosts(
        model, task=task, kernel=kernel, head=head, revision=revision, trust_remote_code=trust_remote_code
    )
    answer = costs.estimate(made, setting)
    return Stopwatch(costs, setting).measured(made, answer) if measure else answer
