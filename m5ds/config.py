"""A run's configuration: frozen dataclasses filled from strict YAML and `key=value` overrides.

A mapping in a YAML file may name a `base` file (relative to the file that names it); its keys are merged over that
file's. An unknown key or an ill-typed value is a `ConfigError` that names the file and the key. Which values live here
and which in DeepSpeed's JSON: docs/configuration.md.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import omegaconf
from omegaconf import OmegaConf
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from m5ds import inputs, modality, plugins
from m5ds.inputs import STRICT

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]


MOVED = {
    ".harmony.masked": "said by model.harmony.objectives",
    ".harmony.contrastive": "said by model.harmony.objectives",
    ".contrastive": "model.objectives.contrastive, and its projection_dim is model.projection_dim,",
}
"""Keys that an earlier version knew, by their end, and where their value is now."""


class ConfigError(ValueError):
    """A configuration that cannot be used. Its message is one line: file, key, value, remedy."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TokenizerConfig:
    """Which tokenizer the run owns (DESIGN 3.1)."""

    kind: Literal["sentencepiece", "huggingface"] = "sentencepiece"
    path: str | None = None
    """A SentencePiece `.model` file or a Hugging Face tokenizer directory. None: train one on the training split."""
    vocab_size: Positive = 8000
    """Entries of the SentencePiece model to train; the model's embedding has as many rows as the tokenizer says."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """What is read and how."""

    shards: str = "quickstart"
    """A directory or fsspec URL that tools/build_shards.py wrote; `quickstart` builds the synthetic catalogue first."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    quickstart_products: Positive = 1600
    """Products of the synthetic catalogue; only for `shards: quickstart`."""
    quickstart_seed: int = 0
    shuffle_pairs: bool = False
    """Only for `shards: quickstart`: break the correspondence between modalities (the control run)."""
    chunk_size: Positive = 64
    """Contiguous products of a shard that are read together; chunks are permuted, then products inside the window."""
    window_chunks: Positive = 16
    """Chunks whose products are permuted together."""
    num_threads: Positive = 1
    """Decoding and reading threads of each rank."""
    prefetch_steps: NotNegative = 2
    """Global steps prepared ahead."""
    max_bad_fraction: Fraction = 0.05
    """Undecodable files over all ranks, as a share of files decoded, past which the run stops."""
    modality_dropout: Fraction = 0.0
    """Chance that a present modality of a product is dropped in training; at least one modality always stays."""
    random_crop: bool = True
    """Keyed random resized crops, frames and audio windows in training; evaluation always takes the centre."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModalityConfig:
    """How the model treats one modality."""

    input: inputs.InputSpec
    embedder: str
    """A name registered in m5ds.model.embeddings."""
    head: str
    """A name registered in m5ds.model.objectives.heads."""
    cls: Literal["learned", "token", "last", "mean", "none"] = "learned"
    """How a segment is summarised: an added learned row ahead of it, its first row, its last row (what a causal
    modality needs), the mean of its rows, or not at all."""
    mask_ratio: Fraction = 0.15
    mask_unit: Literal["token", "pair", "key_or_value", "row", "frame"] = "row"
    """What is masked together: text `token`; table `pair`, `token`, `key_or_value`; others `row` (patch, region, tube)
    or `frame` (all rows of one time step)."""
    loss_weight: Annotated[float, Field(ge=0)] = 1.0
    init_from: str | None = None
    """Text only: a local Hugging Face directory (BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA) whose weights start this
    modality's embedding and encoder. What does not fit the blocks is refused, with what to set."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BlockConfig:
    """`repeat` equal transformer blocks (DESIGN 3.3). None: the model's value."""

    repeat: Positive = 1
    visibility: str | list[list[bool]] | dict[str, list[str]] = "identity"
    """`identity`, `all`, `off_diagonal`, an M x M matrix, or query modality -> keys it sees."""
    updates: list[str] | None = None
    """Modalities whose rows the block changes; None: all."""
    attention_weights: Literal["shared", "per_modality"] = "per_modality"
    ffn_weights: Literal["shared", "per_modality"] = "per_modality"
    causal: list[str] = dataclasses.field(default_factory=list)
    """Modalities whose rows see only themselves and earlier rows of their own segment. Their `cls` is `last` (or `mean`
    or `none`): the first row, which `learned` and `token` read, sees nothing of the segment but itself."""
    norm: Literal["pre", "post"] = "pre"
    activation: Literal["gelu", "quick_gelu", "relu"] = "gelu"
    num_heads: Positive | None = None
    ffn_dim: Positive | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HarmonyConfig:
    """How the losses weigh each other (DESIGN 3.4)."""

    kind: Literal["none", "learned", "cosine", "paper_literal"] = "none"
    weighs: Literal["losses", "logits", "both"] = "losses"
    """What the weights multiply. `paper_literal` weighs both, whatever is said here."""
    objectives: list[str] | None = None
    """Names in `model.objectives` whose losses are weighed; None: all that are about modalities or their pairs."""
    strength: Annotated[float, Field(gt=0)] = 1.0
    """`learned` only: weight of the entropy term that keeps the weights from collapsing on the easiest loss."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """The model. Every system of the paper is a file of this shape (configs/model)."""

    hidden_size: Positive = 768
    num_heads: Positive = 12
    ffn_dim: Positive = 3072
    dropout: Fraction = 0.0
    attention_dropout: Fraction = 0.0
    layer_norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    absent: Literal["drop", "token", "zeros"] = "drop"
    """What stands for an absent modality: no rows; one learned token from fusion on; zeros (reproduction only)."""
    modalities: dict[str, ModalityConfig] = dataclasses.field(default_factory=dict)
    blocks: dict[str, BlockConfig] = dataclasses.field(default_factory=dict)
    """Blocks in order, by name. The leading ones of visibility `identity` are the unimodal encoders;
    the contrastive features are read after them, and `absent: token` rows enter there."""
    projection_dim: Positive = 256
    """Width of the unimodal summaries' projections, which contrastive objectives compare."""
    objectives: dict[str, dict[str, Any] | None] = dataclasses.field(
        default_factory=lambda: {"masked": {}, "contrastive": {}}
    )
    """What is minimised, in order: a name and its section. `kind` says which objective of m5ds/model/objectives it is,
    the name where `kind` is absent; each file there states the section's keys. null leaves one of a `base` out."""
    harmony: HarmonyConfig = HarmonyConfig()

    @property
    def modality_names(self) -> tuple[str, ...]:
        """The model's modalities in table order; M is their number."""
        return modality.in_table_order(tuple(self.modalities))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig:
    """The optimisation. Precision, ZeRO stage, clipping and the optimizer's kind live in DeepSpeed's JSON."""

    total_steps: Positive | None = None
    """Optimizer steps; exactly one of total_steps and epochs is set."""
    epochs: Positive | None = None
    global_batch_size: Positive = 64
    """Products of one optimizer step over all ranks and accumulation steps."""
    accumulation: Positive = 1
    """Micro-batches of each rank per optimizer step; the micro-batch size follows."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Adam's. With 1e-8 a parameter with a tiny gradient moves as fast as any other; a small catalogue, whose tiny
    gradients are mostly noise, keeps better features with 1e-4 (docs/results.md)."""
    warmup_ratio: Fraction = 0.1
    activation_checkpointing: bool = False
    log_every: Positive = 10
    validate_every: NotNegative = 0
    """Steps between validations; 0: only before the first and after the last step."""
    validation_batch_size: Positive = 64
    """Products of one global validation batch."""
    save_every: NotNegative = 0
    """Steps between checkpoints; 0: only the last."""
    keep_last: Positive = 3


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """The whole run YAML."""

    name: str
    output_dir: str = "runs"
    """The run's files go to output_dir/name."""
    seed: NotNegative = 0
    plugins: list[str] = dataclasses.field(default_factory=list)
    """Python files (relative to the working directory) or modules that are imported before anything else is read: they
    register modalities, input kinds, objectives and more (m5ds/plugins.py)."""
    data: DataConfig = DataConfig()
    model: ModelConfig
    train: TrainConfig

    def to_dict(self) -> dict[str, Any]:
        """Plain mappings, lists and scalars, with every input's `kind`, as `parse` reads them."""
        tree = TypeAdapter(RunConfig).dump_python(self, mode="json")
        if not self.plugins:
            del tree["plugins"]  # a run without any is recorded as runs were before there were plugins
        return tree


_ADAPTER: TypeAdapter[RunConfig] = TypeAdapter(RunConfig)
Settings = TypeVar("Settings")


def load(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a run YAML, merge its `base` files under it and `key=value` overrides over it, and check every key.

    Raises ConfigError with one line that names the file and the key.
    """
    config = parse(_tree(path, overrides), str(path))
    _check_together(config, str(path))
    return config


def given_keys(path: str | Path, overrides: list[str] | None = None) -> frozenset[str]:
    """The dotted keys that the YAML, its bases or an override set, as opposed to defaults (engine/ds_config.py)."""

    def leaves(tree: dict[str, Any], prefix: str) -> list[str]:
        return [
            key
            for name, value in tree.items()
            for key in (leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"])
        ]

    return frozenset(leaves(_tree(path, overrides), ""))


def _tree(path: str | Path, overrides: list[str] | None) -> dict[str, Any]:
    """Plain mappings: the YAML with its bases under it and the overrides over it, interpolations resolved."""
    tree = _read(Path(path))
    for override in overrides or []:
        if "=" not in override:
            raise ConfigError(f"command line: {override!r} is not of the form key=value")
    try:
        merged = OmegaConf.merge(tree, OmegaConf.from_dotlist(list(overrides or [])))
        plain = OmegaConf.to_container(merged, resolve=True)
    except omegaconf.errors.OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def parse(tree: dict[str, Any], where: str) -> RunConfig:
    """A RunConfig from plain mappings; `where` names the source in errors."""
    return _validated(_ADAPTER, tree, where)


def load_as(adapter: TypeAdapter[Settings], path: str | Path, overrides: list[str] | None = None) -> Settings:
    """Another kind of configuration (configs/downstream), read and checked key by key as a run's is."""
    return _validated(adapter, _tree(path, overrides), str(path))


def _validated(adapter: TypeAdapter[Settings], tree: dict[str, Any], where: str) -> Settings:
    named = tree.get("plugins")
    try:
        # First of all, since what they register is what the other keys may name. Of another type: pydantic says so.
        if isinstance(named, list) and all(isinstance(name, str) for name in named):
            plugins.load(named, where)
        # Through JSON, since pydantic's strict mode then takes a YAML list for a tuple and still refuses "3" for 3.
        return adapter.validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_explain(item) for item in error.errors())) from error
    except plugins.PluginError as error:
        raise ConfigError(str(error)) from error


def _explain(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "unexpected_keyword_argument":
        moved = next((where for old, where in MOVED.items() if f".{key}".endswith(old)), None)
        if moved is not None:
            return (
                f"unknown key {key}: of the layout before losses were declared in model.objectives; it is {moved} now"
            )
        return f"unknown key {key}; remove it or correct its spelling (docs/configuration.md lists the keys)"
    if item["type"] == "missing":
        return f"{key} is missing"
    return f"{key}: {item['msg']}, got {item['input']!r}"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _read(path: Path) -> Any:
    """The YAML file as an OmegaConf tree, every `base` in it merged under its mapping."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file")
    try:
        tree = OmegaConf.load(path)
    except Exception as error:  # OmegaConf lets the YAML parser's own errors through
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not OmegaConf.is_dict(tree):
        raise ConfigError(f"{path}: must hold a mapping of keys, got {type(tree).__name__}")
    return _merge_bases(tree, path)


def _merge_bases(tree: Any, path: Path) -> Any:
    for key in list(tree.keys()):
        if OmegaConf.is_dict(tree) and OmegaConf.is_dict(tree._get_node(key)):
            tree[key] = _merge_bases(tree[key], path)
    if "base" not in tree:
        return tree
    base = tree.pop("base")
    under = _read((path.parent / str(base)).resolve())
    _drop_other_kinds(under, tree)
    return OmegaConf.merge(under, tree)


def _drop_other_kinds(under: Any, over: Any) -> None:
    """A mapping of another `kind` replaces the one below it whole: the keys of two kinds do not mix."""
    for key in over:
        if OmegaConf.is_dict(over._get_node(key)) and OmegaConf.is_dict(under._get_node(key)):
            if over[key].get("kind", under[key].get("kind")) != under[key].get("kind"):
                del under[key]
            else:
                _drop_other_kinds(under[key], over[key])


def check_summaries(model: ModelConfig) -> None:
    """ValueError where a causal modality is summarised by its first row, which sees nothing of what follows: its
    summary would be a constant vector (DESIGN 3.4).
    """
    for block_name, block in model.blocks.items():
        for name in block.causal:
            settings = model.modalities.get(name)
            if settings is not None and settings.cls in ("learned", "token"):
                raise ValueError(
                    f"model.modalities.{name}.cls is {settings.cls}, but model.blocks.{block_name}.causal names {name}:"
                    f" the first row sees only itself; set model.modalities.{name}.cls=last (or mean)"
                )


def _check_together(config: RunConfig, where: str) -> None:
    """What no single field can say."""
    train, model = config.train, config.model
    if (train.total_steps is None) == (train.epochs is None):
        raise ConfigError(f"{where}: set exactly one of train.total_steps and train.epochs")
    if train.global_batch_size % train.accumulation:
        raise ConfigError(
            f"{where}: train.global_batch_size {train.global_batch_size} must be a multiple of"
            f" train.accumulation {train.accumulation}"
        )
    if not model.modalities:
        raise ConfigError(f"{where}: model.modalities must name at least one modality")
    try:
        names = model.modality_names
    except ValueError as error:
        raise ConfigError(f"{where}: model.modalities: {error}") from error
    for name, block in model.blocks.items():
        heads = block.num_heads or model.num_heads
        if model.hidden_size % heads:
            raise ConfigError(
                f"{where}: model.blocks.{name}.num_heads {heads} must divide hidden_size {model.hidden_size}"
            )
        for field in ("updates", "causal"):
            for entry in getattr(block, field) or []:
                if entry not in names:
                    raise ConfigError(
                        f"{where}: model.blocks.{name}.{field} names {entry!r}; the model has {', '.join(names)}"
                    )
    try:
        check_summaries(model)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
