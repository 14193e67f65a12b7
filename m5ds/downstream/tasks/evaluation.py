"""What several tasks over one shard directory share: splits, labels, classes, and how results are described."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m5ds.data.shards.manifest import Manifest, read_manifest
from m5ds.data.shards.reader import RawProduct, ShardReader
from m5ds.downstream import settings as downstream_settings
from m5ds.downstream.embed.evaluation_data import EvaluationData, Transform
from m5ds.downstream.embed.pretrained import Pretrained
from m5ds.downstream.measure.categories import LEAF, CategoryLevel
from m5ds.downstream.measure.results import Result, Table
from m5ds.downstream.settings import DownstreamConfig
from m5ds.downstream.tasks import tasks
from m5ds.downstream.tasks.baselines import read_products
from m5ds.downstream.tasks.labels import ClassChoice, SubsetReader, choose_classes, drawn_labels, read_labels


@dataclass
class Evaluation:
    """Settings and shards of one process, and what several tasks over them share.

    The decoded test split is kept while it is small, so all models that pass through must read it alike: a pretrained
    one, its initial weights, and what was finetuned from it do.
    """

    settings: DownstreamConfig
    shards: str
    opened: dict[str, EvaluationData] = field(default_factory=dict)

    @cached_property
    def manifest(self) -> Manifest:
        return read_manifest(self.shards)

    @cached_property
    def train_reader(self) -> ShardReader:
        return ShardReader(self.shards, "train")

    @cached_property
    def level(self) -> CategoryLevel:
        """The classes that `category_level` asks for. `ValueError` where no category is as deep."""
        try:
            return CategoryLevel.of(self.manifest.categories, self.settings.category_level)
        except ValueError as error:
            raise ValueError(f"{self.shards}: {error}") from error

    @cached_property
    def train_label_N(self) -> NDArray[np.int64]:
        return self.level.apply(read_labels(self.train_reader))

    def products(self, split: str, transform: Transform | None = None) -> Iterator[RawProduct]:
        """Every product of a split in the shards' order, labelled at the level."""
        return map(self.level.relabel, read_products(self.shards, split, transform))

    def labelled(self, reader: ShardReader) -> ShardReader:
        """The training products that a classifier sees: all, or those of the configured share of labels."""
        fraction = self.settings.classification.label_fraction
        if fraction == 1.0:
            return reader
        return SubsetReader(reader, drawn_labels(reader, fraction, self.settings.seed))

    @cached_property
    def labelled_reader(self) -> ShardReader:
        return self.labelled(self.train_reader)

    @cached_property
    def labelled_ids(self) -> frozenset[str] | None:
        """Ids of those products; None where all are."""
        reader = self.labelled_reader
        if reader is self.train_reader:
            return None
        tables = [reader.index(shard).table for shard in range(len(reader.shard_sizes))]
        return frozenset(name for table in tables for name in table["id"].to_pylist())

    @cached_property
    def uncertainty(self) -> tasks.Uncertainty:
        """Intervals and frequency groups as configured."""
        return tasks.Uncertainty(
            num_replicates=self.settings.num_replicates,
            seed=self.settings.seed,
            train_label_N=self.train_label_N,
            rule=tasks.RULES[self.settings.frequency],
        )

    @cached_property
    def classes(self) -> ClassChoice:
        """The categories that a classifier learns, by the configured policy for rare ones. `ValueError` as there."""
        if self.labelled_reader is self.train_reader:
            return self.all_classes
        return self._choose(self.level.apply(read_labels(self.labelled_reader)))

    @cached_property
    def all_classes(self) -> ClassChoice:
        """The same by every label of the training split, whatever `classification.label_fraction` is."""
        return self._choose(self.train_label_N)

    def _choose(self, label_N: NDArray[np.int64]) -> ClassChoice:
        try:
            return choose_classes(
                label_N,
                self.level.names,
                minimum=self.settings.classification.min_class_products,
                rare=self.settings.classification.rare_classes,
            )
        except ValueError as error:
            raise ValueError(f"{self.shards}: {error}") from error

    def all_labels(self) -> NDArray[np.int64]:
        """Labels of every product of every split: the released code's whole ground truth."""
        labels = [read_labels(ShardReader(self.shards, split)) for split in self.manifest.splits]
        return self.level.apply(np.concatenate(labels))

    def check_head(self, pretrained: Pretrained) -> None:
        """`ValueError` where a finetuned head tells other classes apart than the settings ask for."""
        if pretrained.head is None:
            return
        saved = (pretrained.state or {}).get("finetune", {}).get("settings", {}).get("category_level", LEAF)
        known, wanted = pretrained.head.output.out_features, len(self.level.names)
        if known != wanted or (pretrained.state is not None and saved != self.settings.category_level):
            raise ValueError(
                f"{pretrained.source} was finetuned for {known} classes (category_level {saved}), these settings ask"
                f" for {wanted} (category_level {self.settings.category_level}); use the same level and shards"
            )

    def split(self, pretrained: Pretrained, name: str) -> EvaluationData:
        """A split by its name, the tested one or another."""
        if name == self.settings.test_split:
            return self.data(pretrained)
        return self.data(pretrained, f"split {name}", split=name)

    def data(
        self, pretrained: Pretrained, name: str = "", transform: Transform | None = None, split: str | None = None
    ) -> EvaluationData:
        """The test split (or another) as this model reads it; `name` tells transforms and splits apart."""
        wanted, key = (split, "gallery_split") if split else (self.settings.test_split, "test_split")
        if wanted not in self.manifest.splits:
            there = ", ".join(self.manifest.splits)
            raise ValueError(f"{self.shards}: no split {wanted!r}; they have {there}: set {key} to one of these")
        if name not in self.opened:
            self.opened[name] = EvaluationData(
                self.shards,
                wanted,
                pretrained.model.spec,
                pretrained.tokenizer,
                batch_size=self.settings.batch_size,
                num_threads=self.settings.data.num_threads,
                transform=transform,
                relabel=self.level.relabel,
            )
        return self.opened[name]

    def result(
        self, task: str, stage: str, pretrained: Pretrained, tables: list[Table], extras: dict[str, Any]
    ) -> Result:
        """The record of a task on the test split."""
        return Result(
            task=task,
            stage=stage,
            source=pretrained.source,
            fingerprint=pretrained.fingerprint,
            shards=str(self.shards),
            manifest_hash=self.manifest.hash,
            split=self.settings.test_split,
            settings=downstream_settings.to_dict(self.settings),
            tables=tables,
            extras=extras,
        )
