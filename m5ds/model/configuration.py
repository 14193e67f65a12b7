"""The Hugging Face configuration of M5-MMT: the run's model section plus what the tokenizer fixes."""

import json
import os
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from transformers import PretrainedConfig

from m5ds import modality, plugins
from m5ds.config import MOVED, ModelConfig
from m5ds.model.remote_code import AUTO_MAP, write_remote_code

_ADAPTER: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)


class M5Config(PretrainedConfig):
    """Everything needed to rebuild the module tree: `model` (plain mapping), the vocabulary, and the initial seed."""

    model_type = "m5mmt"

    model: dict[str, Any] | None = None
    """The model section of the run YAML as plain mappings (`spec` parses it strictly)."""
    block_order: list[str] | None = None
    """Names of the blocks in order: Hugging Face sorts the keys of config.json, and blocks are a sequence."""
    objective_order: list[str] | None = None
    """Names of the objectives in order, for the same reason."""
    vocab_size: int = 0
    """Rows of each token table; 0 where no modality is made of tokens."""
    mask_id: int = 0
    """Token that replaces 80 % of the masked tokens."""
    pad_id: int = 0
    """Token of rows that only `absent: zeros` adds."""
    special_ids: list[int] | None = None
    """Tokens that are never masked and never drawn as replacements."""
    initializer_seed: int = 0
    """Seed of the initial weights, which depend on it and the parameters' names only."""
    activation_checkpointing: bool = False
    """Recompute the blocks' activations in the backward pass instead of keeping them."""
    plugins: list[str] | None = None
    """The run's plugins. A folder from elsewhere is never made to run code: whoever loads it loads them first."""
    tie_word_embeddings: bool = True
    """The vocabulary heads' decoders are the token tables."""

    @classmethod
    def from_spec(
        cls,
        spec: ModelConfig,
        *,
        vocab_size: int = 0,
        mask_id: int = 0,
        special_ids: list[int] | None = None,
        **kwargs: Any,
    ) -> "M5Config":
        """The configuration of a parsed model section. Further keywords are fields of this class."""
        tree = _ADAPTER.dump_python(spec, mode="json")
        return cls(
            model=tree,
            block_order=list(spec.blocks),
            objective_order=list(spec.objectives),
            vocab_size=vocab_size,
            mask_id=mask_id,
            special_ids=list(special_ids or []),
            **kwargs,
        )

    @classmethod
    def for_tokenizer(cls, spec: ModelConfig, tokenizer: Any, **kwargs: Any) -> "M5Config":
        """The configuration of a parsed model section and a `m5ds.data.tokenizer.Tokenizer`."""
        return cls.from_spec(
            spec,
            vocab_size=tokenizer.vocab_size,
            mask_id=tokenizer.mask_id,
            pad_id=tokenizer.pad_id,
            special_ids=sorted(tokenizer.special_ids),
            **kwargs,
        )

    def to_dict(self) -> dict[str, Any]:
        """As `PretrainedConfig.to_dict`; a model without plugins does not speak of them."""
        tree = super().to_dict()
        if tree.get("plugins") is None:
            tree.pop("plugins", None)
        return tree

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """As `PretrainedConfig.save_pretrained`, and what the Auto classes need to load the folder."""
        self.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        write_remote_code(save_directory)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: else a loaded configuration would save a copy of this file instead of naming the package."""

    @property
    def spec(self) -> ModelConfig:
        """The parsed model section. `ValueError` names an unknown key or an ill-typed value, and a missing plugin."""
        if self.model is None:
            raise ValueError("M5Config.model is missing: build it with M5Config.from_spec(run_config.model, ...)")
        tree = dict(self.model)
        for key, order in (("blocks", self.block_order), ("objectives", self.objective_order)):
            if order is not None:
                if sorted(order) != sorted(tree.get(key, {})):
                    raise ValueError(f"config.json: {key[:-1]}_order {order} and model.{key} name different {key}")
                tree[key] = {name: tree[key][name] for name in order}
        try:
            parsed = _parsed(json.dumps(tree))
            modality.in_table_order(tuple(parsed.modalities))  # ValueError for one that is not in the table
            return parsed
        except ValueError as error:
            if missing := plugins.not_loaded(self.plugins or []):
                raise ValueError(
                    f"{error}; the model was trained with plugins that are not loaded: {', '.join(missing)};"
                    " pass each with --plugin, name them under `plugins`, or call m5ds.plugins.load first"
                ) from error
            raise

    @property
    def first_ordinary_id(self) -> int:
        """Random replacements are drawn from here to the vocabulary's end: the id after the leading special tokens.

        Special tokens in the upper half of the vocabulary (some Hugging Face tokenizers add theirs last) stay inside.
        """
        leading = [token for token in self.special_ids or [] if 2 * token < self.vocab_size]
        return max(leading, default=-1) + 1


@lru_cache(maxsize=32)
def _parsed(text: str) -> ModelConfig:
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        older = next(
            (f" (an older layout: it is {now} now)" for old, now in MOVED.items() if f".{key}".endswith(old)), ""
        )
        raise ValueError(f"config.json: model.{key}: {first['msg']}, got {first['input']!r}{older}") from error
