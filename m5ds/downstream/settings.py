"""The configuration of downstream evaluation (configs/downstream/*.yaml), as strict as a run's."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from m5ds import config as run_config
from m5ds.config import DataConfig, Fraction, NotNegative, Positive, TrainConfig
from m5ds.downstream.embed.embeddings import check_modalities
from m5ds.downstream.measure.protocols import get_protocol

_config = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))


@_config
class ClassificationConfig:
    """Paper task 3: finetune on the labels of the training split, test on another."""

    modalities: list[str] | None = None
    """Shown to the model; None: all of its."""
    tuning: Literal["full", "frozen", "lora"] = "full"
    """`frozen`: the head alone; `lora`: low-rank adapters on the blocks' linear layers."""
    loss: Literal["cross_entropy", "class_balanced", "logit_adjusted"] = "cross_entropy"
    beta: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """`class_balanced` only."""
    tau: Annotated[float, Field(ge=0)] = 1.0
    """`logit_adjusted` only."""
    dense_size: Positive = 1024
    dropout: Fraction = 0.1
    lora_rank: Positive = 8
    lora_alpha: Annotated[float, Field(gt=0)] = 16.0
    label_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training labels that are known. The paper finetunes on 18,526 labelled products after pretraining on
    millions; a small catalogue is like that only with few of its labels."""
    patience: NotNegative = 0
    """Validations without a better accuracy before training stops; 0: never. Needs train.validate_every."""
    min_class_products: Positive = 2
    """Training products that a class should have."""
    rare_classes: Literal["error", "drop", "keep"] = "error"
    """What becomes of classes with fewer: an error, their products leave both splits, or they stay."""

    def shown(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The modalities in table order. `ValueError` for an empty subset or one that the model lacks."""
        if self.modalities is None:
            return tuple(names)
        return check_modalities(self.modalities, names, "classification.modalities")


@_config
class LinearProbeConfig:
    """Classification on frozen features (tasks/linear_probe.py); rare categories as in `classification`."""

    modalities: list[str] | None = None
    """Shown to the model; None: all of its."""
    alone: list[str] | None = None
    """Modalities that are also shown alone, a table each over the products that have it; None: all of the model's."""
    states: Literal["fused", "contrastive"] = "fused"
    operation: Literal["concat", "mean", "sum"] = "mean"
    """With `states`, the features; these defaults are those of retrieval and clustering."""
    inverse_regularization: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = dataclasses.field(
        default_factory=lambda: [1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2]
    )
    """scikit-learn's C; of several the one with the best accuracy on `validation`, all of whose labels count."""
    max_iterations: Positive = 200
    label_fractions: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = dataclasses.field(
        default_factory=lambda: [0.05, 0.1, 0.2, 0.5, 1.0]
    )
    """Shares of the training labels that are known, a table each."""
    draws: Positive = 5
    """Draws of the labels at each share below 1; their results are averaged."""


@_config
class RetrievalConfig:
    """Paper tasks 1 and 2, each with a section of this shape."""

    ks: Annotated[list[Positive], Field(min_length=1)] = dataclasses.field(default_factory=lambda: [1, 5, 10])
    protocols: Annotated[list[str], Field(min_length=1)] = dataclasses.field(
        default_factory=lambda: ["standard", "official"]
    )
    query_modalities: list[str] | None = None
    """None: all of the model's."""
    gallery_modalities: list[str] | None = None
    gallery_split: str | None = None
    """`coarse_retrieval` only: split that is searched; None: the tested one, a query's own entry left out. The released
    scripts do the latter, the paper describes galleries of other products."""
    states: Literal["fused", "contrastive", "dense"] = "fused"
    """What a product's vector is read from; `dense` is the finetuned classifier's layer (paper's "finetune")."""
    operation: Literal["concat", "mean", "sum"] = "mean"
    normalized: bool = True
    instance: Literal["product", "group", "file"] = "product"
    """Instance retrieval finds the same product by other modalities, another product of its group, or the same
    product by another of its files."""
    query_file: NotNegative = 1
    """`instance: file` only: number of the file that the query shows; the gallery shows file 0."""

    def __post_init__(self) -> None:
        for name in self.protocols:
            get_protocol(name)


@_config
class ClusteringConfig:
    """Paper task 4."""

    num_clusters: Positive | None = None
    """None: as many as categories."""
    modalities: list[str] | None = None
    states: Literal["fused", "contrastive", "dense"] = "fused"
    operation: Literal["concat", "mean", "sum"] = "mean"
    seeds: Annotated[list[int], Field(min_length=1)] = dataclasses.field(default_factory=lambda: [0, 1, 2])
    """k-means starts; the report gives their mean."""
    projection: Literal["t-sne", "umap"] = "t-sne"
    """How the report draws the embeddings in the plane; `umap` needs the package umap-learn, which is not installed by
    default."""


@_config
class RobustnessConfig:
    """Coarse retrieval under absence and noise (m5ds/downstream/tasks/robustness.py)."""

    policies: list[Literal["drop", "token", "zeros"]] = dataclasses.field(default_factory=list)
    """What stands for an absent modality, side by side; empty: the model's own. `token` needs a model trained so."""
    by_modality: bool = True
    """A curve over the missing rate of each modality alone, besides the one over all."""
    rates: list[Fraction] = dataclasses.field(default_factory=lambda: [0.0, 0.2, 0.4, 0.6, 0.8])
    subsets: bool = True
    """Evaluate every non-empty modality subset."""
    noise_rates: list[Fraction] = dataclasses.field(default_factory=lambda: [0.25, 0.5])
    """Shares of shuffled pairs, and of damaged files."""


@_config
class DownstreamConfig:
    """The whole file."""

    name: str
    output_dir: str = "runs/downstream"
    seed: NotNegative = 0
    plugins: list[str] = dataclasses.field(default_factory=list)
    """As in a run's YAML: what an exported model needs that was trained with plugins. A run's own are known."""
    batch_size: Positive = 32
    """Products of one evaluation batch."""
    num_replicates: Positive = 1000
    """Bootstrap replicates of an interval."""
    frequency: Literal["counts", "shares"] = "counts"
    """Rule for head, medium and tail classes (m5ds/downstream/measure/frequency.py)."""
    category_level: Positive | Literal["leaf"] = "leaf"
    """Names of a category's path that tell classes apart in every task with labels; `leaf`: all of them. A shorter path
    stays whole (m5ds/downstream/measure/categories.py)."""
    test_split: str = "test"
    """Split of the shards that everything is measured on. The classifier trains on `train`; early stopping looks at
    `validation`."""
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig(epochs=5)
    classification: ClassificationConfig = ClassificationConfig()
    linear_probe: LinearProbeConfig = LinearProbeConfig()
    coarse_retrieval: RetrievalConfig = RetrievalConfig()
    instance_retrieval: RetrievalConfig = RetrievalConfig()
    clustering: ClusteringConfig = ClusteringConfig()
    robustness: RobustnessConfig = RobustnessConfig()


_ADAPTER: TypeAdapter[DownstreamConfig] = TypeAdapter(DownstreamConfig)


def load(path: str | Path, overrides: list[str] | None = None) -> DownstreamConfig:
    """Read a downstream YAML with its bases and `key=value` overrides; ConfigError names the file and the key."""
    settings = run_config.load_as(_ADAPTER, path, overrides)
    train = settings.train
    if (train.total_steps is None) == (train.epochs is None):
        raise run_config.ConfigError(f"{path}: set exactly one of train.total_steps and train.epochs")
    if settings.classification.patience and not train.validate_every:
        raise run_config.ConfigError(f"{path}: classification.patience needs train.validate_every to be set")
    if settings.classification.patience and settings.test_split == "validation":
        raise run_config.ConfigError(
            f"{path}: classification.patience would choose the checkpoint on the split that is tested, validation; set"
            " it to 0 or test on another split"
        )
    if settings.instance_retrieval.gallery_split is not None:
        raise run_config.ConfigError(
            f"{path}: instance_retrieval.gallery_split: the product to find is in the tested split; leave it out"
        )
    return settings


def to_dict(settings: DownstreamConfig) -> dict:
    """Plain mappings, for records."""
    tree = _ADAPTER.dump_python(settings, mode="json")
    if not settings.plugins:
        del tree["plugins"]
    return tree
