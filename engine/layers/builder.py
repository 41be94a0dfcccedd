"""What a model file builds its layers with: binds ops, declares parameters, knows the step size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hal import opset
from hal.binding import Binder, Buffer
from hal.collective import Collective
from hal.dtypes import DType
from hal.engine.layers.gathered import GatheredLinear
from hal.engine.layers.parameters import (
    LinearLayout,
    Parameters,
    Rows,
    Section,
    Table,
    Vector,
    add_linear,
)
from hal.engine.layers.vocabulary import Vocabulary, VocabularyShare
from hal.engine.model_config import ModelConfig
from hal.engine.rope import rope_frequencies
from hal.opset.attention import AttentionProblem, AttentionSpec, RopeProblem
from hal.opset.block import (
    AttentionBlock,
    AttentionBlockProblem,
    AttentionWeights,
    MlpBlock,
    MlpBlockProblem,
)
from hal.opset.elementwise import Activation
from hal.opset.indexing import GatherProblem
from hal.opset.linear import LinearFamily
from hal.opset.norm import NormInput, NormKind, NormProblem
from hal.opset.vocab import VocabFamily, VocabProblem
from hal.share import Share
from hal.tensor import Tensor
from hal.weights import WeightFormat

Reduce = Callable[[Tensor], None]

# The names that configs use for the same function.
ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "relu": Activation.RELU,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """Choices made before layers are built.

    deterministic: with several ranks, the bits of one
    weights: of the layers' matrices; head_weights: of the matrix that makes logits. None: in dtype.
    kv_dtype: of the KV cache; None: dtype
    """

    dtype: DType
    block_size: int
    max_model_len: int
    max_num_seqs: int
    deterministic: bool = False
    weights: WeightFormat | None = None
    head_weights: WeightFormat | None = None
    kv_dtype: DType | None = None


class _Norm:
    """What the norms of one place in the model have in common."""

    def __init__(self, build: Builder, name: str, eps: float, *, has_bias: bool) -> None:
        size = build.config.hidden_size
        self._weight = build.parameters.vector(f"{name}.weight", size)
        self._bias = build.parameters.vector(f"{name}.bias", size) if has_bias else None
        self._eps = eps
        self._input: NormInput | None = None

    def of(self, x: Tensor, residual: Tensor | None) -> NormInput:
        """For a block that norms its input itself; the same object while the tensors are."""
        made, weight = self._input, self._weight.tensor
        if made is None or not (
            made.values is x and made.residual is residual and made.weight is weight
        ):
            bias = None if self._bias is None else self._bias.tensor
            made = NormInput(values=x, residual=residual, weight=weight, bias=bias, eps=self._eps)
            self._input = made
        return made


class RmsNorm(_Norm):
    """RMSNorm of one place in the model."""

    def __init__(self, build: Builder, name: str, eps: float) -> None:
        super().__init__(build, name, eps, has_bias=False)
        self._norm = build.binder.bind(opset.rms_norm, build.norm_problem())

    def __call__(self, x: Tensor, residual: Tensor | None, out: Tensor) -> None:
        self._norm(x, residual, self._weight.tensor, self._eps, out)


class LayerNorm(_Norm):
    """Layer normalisation with bias of one place in the model."""

    def __init__(self, build: Builder, name: str, eps: float) -> None:
        super().__init__(build, name, eps, has_bias=True)
        self._norm = build.binder.bind(opset.layer_norm, build.norm_problem())

    def __call__(self, x: Tensor, residual: Tensor | None, out: Tensor) -> None:
        assert self._bias is not None
        self._norm(x, residual, self._weight.tensor, self._bias.tensor, self._eps, out)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionNames:
    """Checkpoint names of one attention; qkv: of the three, or of one tensor with all of them."""

    qkv: tuple[str, ...]
    output: str
    q_norm: str | None = None
    k_norm: str | None = None
    is_transposed: bool = False


class Attention:
    """One layer's attention block with its vectors, reduced over ranks.

    norm: of the one in front
    """

    def __init__(
        self, build: Builder, names: AttentionNames, layer: int, norm: NormKind = NormKind.RMS
    ) -> None:
        problem = build.attention_problem(layer, norm)
        self.family = build.binder.shared(opset.attention, problem.attention)
        self._block: AttentionBlock = build.binder.bind(opset.attention_block, problem)
        self._reduce = self._declare(build, names)
        self._cos_sin = build.cos_sin()
        self._q_norm = build.optional_vector(names.q_norm, build.config.head_dim)
        self._k_norm = build.optional_vector(names.k_norm, build.config.head_dim)
        self._eps = build.config.norm_eps
        self._weights: AttentionWeights | None = None

    def _declare(self, build: Builder, names: AttentionNames) -> Reduce:
        """What the block's output still needs."""
        sections = build.qkv_sections()
        runs = (sections,) if len(names.qkv) == 1 else tuple((section,) for section in sections)
        qkv = LinearLayout(
            rows=tuple(Rows(name=n, sections=r) for n, r in zip(names.qkv, runs, strict=True)),
            is_transposed=names.is_transposed,
        )
        add_linear(build.parameters, self._block.qkv, qkv)
        output = _CutInputs(self._block.output, names.output, sections[0], names.is_transposed)
        self._block.output, reduce = build.over_ranks(output)
        return reduce

    def __call__(
        self, x: Tensor, positions: Tensor, kv: Tensor, out: Tensor, norm: NormInput
    ) -> None:
        """out [T, hidden_size] from x, which is first written as the norm."""
        if self._weights is None:
            self._weights = self._collect()
        self._block(x, positions, kv, self._weights, out, norm)
        self._reduce(out)

    def _collect(self) -> AttentionWeights:
        return AttentionWeights(
            cos_sin=None if self._cos_sin is None else self._cos_sin.tensor,
            q_norm=None if self._q_norm is None else self._q_norm.tensor,
            k_norm=None if self._k_norm is None else self._k_norm.tensor,
            norm_eps=self._eps,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpNames:
    """Checkpoint names of one MLP; gate is None where it is not gated."""

    up: str
    down: str
    gate: str | None = None
    is_transposed: bool = False


class Mlp:
    """One layer's MLP block, reduced over ranks; norm as in Attention."""

    def __init__(self, build: Builder, names: MlpNames, norm: NormKind = NormKind.RMS) -> None:
        config = build.config
        self._block: MlpBlock = build.binder.bind(
            opset.mlp_block,
            MlpBlockProblem(
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                activation=ACTIVATIONS[config.activation],
                is_gated=names.gate is not None,
                has_bias=config.mlp_bias,
                dtype=build.options.dtype,
                weights=build.options.weights,
                norm=norm,
            ),
        )
        inputs = [name for name in (names.gate, names.up) if name is not None]
        own = build.section(build.whole.intermediate_size)
        add_linear(
            build.parameters,
            self._block.up,
            LinearLayout(
                rows=tuple(Rows(name=name, sections=(own,)) for name in inputs),
                is_transposed=names.is_transposed,
            ),
        )
        down = _CutInputs(self._block.down, names.down, own, names.is_transposed)
        self._block.down, self._reduce = build.over_ranks(down)

    def __call__(self, x: Tensor, out: Tensor, norm: NormInput) -> None:
        """out [T, hidden_size] from x, which is first written as the norm."""
        self._block(x, out, norm)
        self._reduce(out)


@dataclass(frozen=True, slots=True)
class _CutInputs:
    """A layer of a block, of whose inputs this rank has `inputs`; name: in the checkpoint."""

    family: LinearFamily
    name: str
    inputs: Section
    is_transposed: bool


def _already_whole(_out: Tensor) -> None:
    """Instead of a sum over ranks."""


class Builder:
    """Binds and declares the parts of one model that this rank keeps.

    whole, config: the model's sizes, and this rank's of what ranks cut
    """

    def __init__(
        self,
        config: ModelConfig,
        options: BuildOptions,
        binder: Binder,
        collective: Collective,
    ) -> None:
        self.share = Share(collective.rank, collective.size)
        self.whole = config
        self.config = _sizes_of(config, self.share)
        self.options = options
        self.binder = binder
        self.collective = collective
        width = GatherProblem(width=config.hidden_size, dtype=options.dtype)
        self.parameters = Parameters(options.dtype, binder.bind(opset.store, width))
        self._cos_sin: Table | None = None

    def hidden_buffer(self, name: str) -> Buffer:
        """A [max_tokens, hidden_size] piece of the step arena."""
        return self.binder.arena.buffer(name, self.config.hidden_size, self.options.dtype)

    def optional_vector(self, name: str | None, size: int) -> Vector | None:
        return None if name is None else self.parameters.vector(f"{name}.weight", size)

    def section(self, size: int) -> Section:
        """Of `size` rows or columns, those of this rank."""
        return Section(size, self.share.of(size))

    def over_ranks(self, layer: _CutInputs) -> tuple[LinearFamily, Reduce]:
        """Declare a layer of whose inputs each rank has a part: what runs it, and what its outputs
        need to be those of all ranks."""
        size = layer.family.problem.out_features
        if not (self.options.deterministic and self.share.size > 1):
            layout = LinearLayout(
                rows=(Rows(name=layer.name, sections=(Section.whole(size),)),),
                columns=layer.inputs,
                is_transposed=layer.is_transposed,
                has_bias=self.share.rank == 0,
            )
            add_linear(self.parameters, layer.family, layout)
            return layer.family, self.collective.all_reduce
        gathered = GatheredLinear(
            layer.family.problem, layer.inputs.total, self.binder, self.collective
        )
        rows = Rows(name=layer.name, sections=(self.section(size),))
        layout = LinearLayout(rows=(rows,), is_transposed=layer.is_transposed)
        add_linear(self.parameters, gathered.own, layout)
        return gathered, _already_whole

    def qkv_sections(self) -> tuple[Section, Section, Section]:
        """Rows of query, key and value heads."""
        whole, width = self.whole, self.config.head_dim
        heads = self.share.of(whole.num_heads)
        kv_heads = self.share.of_kv_heads(whole.num_kv_heads)
        q = Section(whole.num_heads * width, range(heads.start * width, heads.stop * width))
        kv = Section(
            whole.num_kv_heads * width, range(kv_heads.start * width, kv_heads.stop * width)
        )
        return q, kv, kv

    def vocab(self, name: str, *, embeds: bool, makes_logits: bool) -> Vocabulary:
        """The matrix of all token ids, of which each rank keeps a run of rows."""
        own = self.section(self.whole.vocab_size)
        family = self.table(name, own, embeds=embeds, makes_logits=makes_logits)
        if self.share.size == 1:
            return family
        return VocabularyShare(
            family, own.own, self.binder, self.collective, self.options.max_num_seqs
        )

    def table(
        self, name: str, rows: Section, *, embeds: bool, makes_logits: bool = False
    ) -> VocabFamily:
        """A [rows, hidden_size] vocabulary family, owned by the weights.

        One that is only looked up is never quantised: a step reads few of its rows, so that would
        cost precision and save no time.
        """
        problem = VocabProblem(
            vocab_size=len(rows.own),
            hidden_size=self.config.hidden_size,
            dtype=self.options.dtype,
            embeds=embeds,
            makes_logits=makes_logits,
            weights=self.options.head_weights if makes_logits else None,
        )
        family: VocabFamily = self.binder.bind(opset.vocab, problem)
        self.parameters.own(family)
        self.parameters.vocab(name, family, rows)
        return family

    def norm_problem(self) -> NormProblem:
        return NormProblem(hidden_size=self.config.hidden_size, dtype=self.options.dtype)

    def attention_problem(self, layer: int, norm: NormKind) -> AttentionBlockProblem:
        config, dtype = self.config, self.options.dtype
        rotary_dim = 0 if config.rope is None else config.rope.rotary_dim(config.head_dim)
        return AttentionBlockProblem(
            hidden_size=config.hidden_size,
            attention=AttentionProblem(
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                dtype=dtype,
                block_size=self.options.block_size,
                spec=AttentionSpec(
                    scale=config.head_dim**-0.5,
                    window=config.windows[layer],
                    kv_dtype=self.options.kv_dtype,
                ),
            ),
            rope=RopeProblem(
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                rotary_dim=rotary_dim,
                has_norm=config.qk_norm,
                dtype=dtype,
            ),
            has_qkv_bias=config.qkv_bias,
            has_output_bias=config.o_bias,
            weights=self.options.weights,
            norm=norm,
        )

    def cos_sin(self) -> Table | None:
        """The rotary table that all layers share; None where positions are learned."""
        if self._cos_sin is None and self.config.rope is not None:
            rotary_dim = self.config.rope.rotary_dim(self.config.head_dim)
            shape = (self.options.max_model_len, rotary_dim)
            self._cos_sin = self.parameters.table(shape, self._rotary_table)
        return self._cos_sin

    def _rotary_table(self) -> NDArray[np.float32]:
        """[max_model_len, rotary_dim]: cosines, then sines; angles in float64."""
        rope = self.config.rope
        assert rope is not None
        max_len = self.options.max_model_len
        frequencies = rope_frequencies(rope, self.config.head_dim, max_len)
        angles = np.outer(np.arange(max_len, dtype=np.float64), frequencies.inv_freq)
        table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        return (table * frequencies.attention_scaling).astype(np.float32)


def _sizes_of(config: ModelConfig, share: Share) -> ModelConfig:
    """The same model with this rank's numbers of heads and MLP columns."""
    return replace(
        config,
        num_heads=len(share.of(config.num_heads)),
        num_kv_heads=len(share.of_kv_heads(config.num_kv_heads)),
        intermediate_size=len(share.of(config.intermediate_size)),
    )
