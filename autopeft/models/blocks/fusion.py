"""AdapterFusion: attention over the outputs of adapters that earlier studies exported.

With h the output of a sublayer's last linear map, z_1 … z_N what the N adapters of that place would add to it, and
three [d, d] matrices without biases:

    s = softmax_n((Q h) · (K z_n)),   h <- h + V Σ_n s_n z_n

The adapters are frozen; Q, K and V train. V starts as the identity with 1e-6 beside its diagonal and is held near it
by a penalty on |V - I|². Where one adapter alone is in a place, s = 1 whatever Q and K are: there is only V then.
The step-0 model is not the base model: the adapters change it from the first step on.

Source: Pfeiffer et al. 2021 (arXiv:2005.00247), section 3.2 (Q, K and V; no scaling of the scores) and its code (the
start of V, the penalty with its factor 0.01; z_n is what an adapter adds, without the residual).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError
from torch import nn

from autopeft.errors import ArtifactError, DesignError
from autopeft.models.adapter_files import find_file, read_json
from autopeft.models.artifact import DESCRIPTION_FILE, TENSOR_FILE, read_tensors
from autopeft.models.blocks.adapter import Adapter
from autopeft.models.bottleneck_technique import OUTPUT, Bottleneck, SublayerInput, named
from autopeft.models.technique import Site, Technique
from autopeft.spec.block import Block, Quantization, first_shared, register
from autopeft.spec.design import Design
from autopeft.spec.local_folders import local_folder, sha256
from autopeft.spec.model import ModelSummary

_OFF_DIAGONAL = 1e-6
_QUERY_STD = 0.02
"""Of Q and K at the start, which the paper leaves open: that of BERT's own linear maps."""


class Member(BaseModel):
    """An exported adapter as a design holds it: what it is, and where its tensors were.

    Attributes:
        folder: The exported folder, as it was given.
        sha256: Of its tensor file: a training refuses a folder that has changed since.
        base: Fingerprint of the base model that it was trained on.
        blocks: Its adapters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    base: str
    blocks: Annotated[
        tuple[Adapter, ...], PlainSerializer(lambda blocks: [block.model_dump(mode="json") for block in blocks])
    ]

    def at(self, model: ModelSummary, layer: int, place: str) -> dict[str, Adapter]:
        """Return what the member has in a sublayer, by the name of its module: serial, parallel or both."""
        here = [block for block in self.blocks if (layer, place) in block.sublayers(model)]
        return named(here, place)


def _read_member(value: Any) -> Any:
    """Turn the path of an exported folder into what a design holds of it; what a design holds is left as it is."""
    if isinstance(value, Mapping | Member):
        return value
    if not isinstance(value, str | Path):
        raise ValueError("an adapter to fuse must be the path of an exported folder")
    try:
        folder = Path(value).expanduser()
        description, tensors = find_file(folder, DESCRIPTION_FILE), find_file(folder, TENSOR_FILE)
    except RuntimeError as error:  # no home folder
        raise ValueError(str(error)) from None
    if description is None:
        raise ValueError(f"an adapter to fuse must be an exported folder with {DESCRIPTION_FILE}; export it first")
    try:
        content = read_json(description)
        design, base = Design.from_dict(content["design"]), str(content["base_model"]["fingerprint"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{DESCRIPTION_FILE} is damaged ({error}): export the adapter again") from None
    if design.kinds != ("adapter",):
        raise ValueError(
            f"only designs of adapter blocks can be fused, but this one is {design.describe()}: export another design"
        )
    if tensors is None:
        raise ValueError(f"an exported adapter must have its tensors, but {TENSOR_FILE} is missing: export it again")
    blocks = [block for block in design.blocks if isinstance(block, Adapter)]
    if any(block.gate for block in blocks):
        raise ValueError("a gated adapter cannot be fused, for its gate reads what the fusion changes: export another")
    # An export holds the mean of the experts: one adapter.
    plain = tuple(block.model_copy(update={"experts": 1}) for block in blocks)
    return Member(folder=str(value), sha256=sha256(tensors), base=base, blocks=plain)


def _read_members(value: Any) -> Any:
    """Read every member and put them in one order: attention does not depend on it."""
    if isinstance(value, str | Path | Mapping) or not isinstance(value, Sequence) or not value:
        raise ValueError("must be a list of the folders of exported adapters")
    try:
        members = [Member.model_validate(_read_member(item)) for item in value]
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))} of an adapter to fuse: {first['msg']}") from None
    if (twice := first_shared([member.sha256] for member in members)) is not None:
        folders = ", ".join(member.folder for member in members if member.sha256 == twice)
        raise ValueError(f"each adapter can be fused once, but these hold the same tensors: {folders}")
    return tuple(sorted(members, key=lambda member: (member.folder, member.sha256)))


@register
class Fusion(Technique):
    """Settings of an AdapterFusion.

    A fusion is in those of its layers, and in those places in them, where an adapter is. A block `adapter` in the same
    place comes first: what it adds is part of h.

    Attributes:
        adapters: Folders of exported designs of adapter blocks, made on the same base model; a validated design
            holds what they are, and an export their tensors, so that neither needs the folders any more.
        layers: The layers, `"all"` for every one that an adapter is in.
        regularization: Factor of the penalty |V - I|².
    """

    kind: ClassVar[str] = "fusion"
    # Pfeiffer et al., section 4.3: 5e-5 for the fusion, and 1e-4 for the adapters before.
    default_learning_rate: ClassVar[float] = 5e-5

    adapters: Annotated[tuple[Member, ...], BeforeValidator(_read_members)]
    regularization: Annotated[float, Field(ge=0)] = 0.01

    @property
    def starts_as_base(self) -> bool:
        """Return False: the adapters change the model."""
        return False

    def outside_content(self) -> Mapping[str, str]:
        """Return the adapters' folders, each with the hash of its tensors."""
        return {member.folder: member.sha256 for member in self.adapters}

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse adapters of another base model, and layers that none of them is in."""
        super().check(model, quantization)
        for member in self.adapters:
            if member.base != model.fingerprint:
                raise DesignError(
                    f"adapters can be fused only on the base model that they were trained on, but {member.folder} was "
                    f"trained on another one than {model.name}; take it out of fusion.adapters"
                )
            for block in member.blocks:
                block.check(model, quantization)
        covered = self._covered(model)
        for layer in () if self.layers == "all" else self.layers:
            if layer not in covered:
                raise DesignError(
                    f"a fused layer must have an adapter, but layer {layer} has none: they are in layers "
                    f"{', '.join(map(str, covered))}; change fusion.layers"
                )

    @classmethod
    def check_together(cls, blocks: Sequence[Block], model: ModelSummary) -> None:
        """Refuse two fusions in one layer: fuse their adapters in one block."""
        shared = first_shared(block.layer_indices(model) for block in blocks)
        if shared is not None:
            raise DesignError(
                f"a layer can have one fusion, but two blocks want layer {shared}; put their adapters into one block"
            )

    def resolve(self, model: ModelSummary) -> "Block":
        """Return the canonical form: all layers that have an adapter are written as `"all"`."""
        return self._collapse("layers", self._covered(model))

    def layer_indices(self, model: ModelSummary) -> tuple[int, ...]:
        """Return the layers that a fusion is in: those of `layers` that an adapter is in."""
        covered = self._covered(model)
        return covered if self.layers == "all" else tuple(layer for layer in self.layers if layer in covered)

    def describe(self) -> str:
        """Say which adapters are fused, by the names of their folders."""
        return f"fusion of {' and '.join(Path(member.folder).name for member in self.adapters)}"

    def _covered(self, model: ModelSummary) -> tuple[int, ...]:
        layers = {i for member in self.adapters for block in member.blocks for i in block.layer_indices(model)}
        return tuple(sorted(layers))

    def attach(self, site: Site) -> None:
        """Put the adapters and an attention over them into each sublayer that has one."""
        fresh = not site.restored and next(site.model.parameters()).device.type != "meta"
        saved = [_read_tensors(member) if fresh else None for member in self.adapters]
        for layer in self.layer_indices(site.summary):
            for place in OUTPUT:
                frozen = [
                    FrozenAdapter(made)
                    for member, tensors in zip(self.adapters, saved, strict=True)
                    if (made := _make_bottlenecks(site, layer, place, member, tensors))
                ]
                if frozen:
                    self._attach_one(site, layer, place, frozen)

    def _attach_one(self, site: Site, layer: int, place: str, frozen: Sequence["FrozenAdapter"]) -> None:
        summary = site.summary.layers[layer]
        last = summary.roles[OUTPUT[place]]
        attention = AdapterAttention(frozen, last.out_features, self.regularization)
        site.add(summary.path, f"autopeft_fusion_{place}", attention)
        found = SublayerInput()
        blocks = [block for member in self.adapters for block in member.at(site.summary, layer, place).values()]
        parallel = next((block for block in blocks if block.mode == "parallel"), None)
        if parallel is not None:  # all parallel adapters of a sublayer read the same map's input
            found.watch(site, summary, parallel.maps(summary, place))

        def fuse(_module: nn.Module, _args: Any, hidden: torch.Tensor) -> torch.Tensor:
            fused: torch.Tensor = hidden + attention(hidden, hidden if parallel is None else found.take())
            return fused

        site.hook(site.module(last.path), fuse)

    @classmethod
    def penalty(cls, blocks: Sequence[Any], site: Site) -> torch.Tensor | None:  # noqa: ARG003
        """Return the penalty that holds each V near the identity."""
        fused = [module for module in site.added.values() if isinstance(module, AdapterAttention)]
        return torch.stack([attention.penalty() for attention in fused]).sum()


class FrozenAdapter(nn.Module):
    """What one exported adapter adds to a sublayer: its serial bottleneck, its parallel one, or the sum of both."""

    def __init__(self, bottlenecks: Mapping[str, Bottleneck]) -> None:
        super().__init__()
        self.bottlenecks = nn.ModuleDict(bottlenecks).requires_grad_(False)

    def forward(self, hidden: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return z, [..., d], of the output `hidden` of the sublayer's last linear map and the sublayer's input x."""
        read = {"serial": hidden, "parallel": x}
        return torch.stack([bottleneck(read[mode]) for mode, bottleneck in self.bottlenecks.items()]).sum(0)


class AdapterAttention(nn.Module):
    """V Σ_n s_n z_n with s = softmax_n((Q h) · (K z_n)), over frozen adapters; [..., d] to [..., d]."""

    def __init__(self, adapters: Sequence[FrozenAdapter], width: int, regularization: float) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(adapters)
        self.regularization = regularization
        self.value = nn.Linear(width, width, bias=False)
        nn.init.constant_(self.value.weight, _OFF_DIAGONAL)
        with torch.no_grad():
            self.value.weight.fill_diagonal_(1.0)
        self.query: nn.Linear | None = None
        self.key: nn.Linear | None = None
        if len(adapters) > 1:
            self.query = nn.Linear(width, width, bias=False)
            self.key = nn.Linear(width, width, bias=False)
            for linear in (self.query, self.key):
                nn.init.normal_(linear.weight, std=_QUERY_STD)

    def forward(self, hidden: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return what the fusion adds, in the dtype of `hidden`.

        Args:
            hidden: Output of the sublayer's last linear map, [..., d].
            x: Input of the sublayer, which parallel adapters read.
        """
        dtype = self.value.weight.dtype
        read = hidden.to(dtype)
        added = torch.stack([adapter(read, x.to(dtype)) for adapter in self.adapters], dim=-2)
        if self.query is None or self.key is None:
            mixed = added.squeeze(-2)
        else:
            scores = (self.query(read).unsqueeze(-2) * self.key(added)).sum(-1, keepdim=True)
            mixed = (scores.softmax(dim=-2) * added).sum(-2)
        fused: torch.Tensor = self.value(mixed)  # V is linear: it is enough to apply it to the sum
        return fused.to(hidden.dtype)

    def penalty(self) -> torch.Tensor:
        """Return the regularization times |V - I|²."""
        value = self.value.weight
        identity = torch.eye(len(value), device=value.device, dtype=value.dtype)
        distance: torch.Tensor = (value - identity).square().sum()
        return distance * self.regularization


def _make_bottlenecks(
    site: Site, layer: int, place: str, member: Member, tensors: Mapping[str, torch.Tensor] | None
) -> dict[str, Bottleneck]:
    """Return what a member has in a sublayer by mode, with its exported values where they are given."""
    made: dict[str, Bottleneck] = {}
    for name, block in member.at(site.summary, layer, place).items():
        bottleneck = block.make_bottleneck(site, layer, place, None)
        if tensors is not None:
            _fill(bottleneck, tensors, f"{site.summary.layers[layer].path}.{name}.")
        made[block.mode] = bottleneck
    return made


def _fill(bottleneck: Bottleneck, tensors: Mapping[str, torch.Tensor], prefix: str) -> None:
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    try:
        bottleneck.load_state_dict(own)
    except RuntimeError as error:
        raise ArtifactError(
            f"an adapter to fuse must have the tensors that its description promises, but at {prefix.rstrip('.')}: "
            f"{error}; export it again, from a model of the same architecture"
        ) from None


def _read_tensors(member: Member) -> dict[str, torch.Tensor]:
    """Return a member's tensors, for a new training.

    Raises:
        ArtifactError: The folder is not there any more, or holds something else.
    """
    folder = local_folder(member.folder)
    file = find_file(folder, TENSOR_FILE)
    if file is None:
        raise ArtifactError(
            f"a new training of a fusion needs the adapters that it fuses, but {member.folder} is not there; put it "
            "back, or load an export of a trained fusion, which holds them"
        )
    if sha256(file) != member.sha256:
        raise ArtifactError(
            f"an adapter must be the one that the design was made with, but {member.folder} has changed since; make "
            "the design anew, from the path"
        )
    return read_tensors(folder, TENSOR_FILE)
