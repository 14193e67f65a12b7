"""Raw products in, a batch out: what the model was trained on, saved beside its weights.

For use outside training: the tokenizer and the inputs' sizes travel in one directory with `M5ForPretraining`'s files.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from m5ds import modality
from m5ds.batch import Batch
from m5ds.config import ModelConfig
from m5ds.data.batches.micro_batch import MicroBatchMaker
from m5ds.data.decode.decoder import Decoder
from m5ds.data.shards.reader import Media, RawProduct
from m5ds.data.tokenizer import Tokenizer, load_tokenizer
from m5ds.inputs import InputSpec
from m5ds.kernels.common import philox
from m5ds.model.remote_code import AUTO_MAP, write_remote_code

CONFIG_FILE = "processor_config.json"
TOKENIZER_FOLDER = "tokenizer"

_ADAPTER: TypeAdapter[dict[str, InputSpec]] = TypeAdapter(dict[str, InputSpec])
_TEXT_FIELDS = ("id", "title", "description", "attributes")
_FROM_AUTO = {
    *("trust_remote_code", "code_revision", "revision", "token", "use_auth_token", "cache_dir", "force_download"),
    *("local_files_only", "subfolder", "proxies", "_from_auto", "_commit_hash"),
}
"""What AutoProcessor passes on beside a user's keywords."""


class M5Processor:
    """Turns products into the batches that the model takes. Everything is deterministic: centre crops, centre
    windows.
    """

    def __init__(
        self, inputs: Mapping[str, InputSpec], tokenizer: Tokenizer, *, device: str = "auto", num_threads: int = 1
    ) -> None:
        """`inputs`: the input of each of the model's modalities; `device` and `num_threads` as `Decoder` takes them."""
        self.inputs = {name: inputs[name] for name in modality.in_table_order(tuple(inputs))}
        self.tokenizer = tokenizer
        self._maker = MicroBatchMaker(self.inputs, tokenizer, Decoder(device=device, num_threads=num_threads))

    @classmethod
    def for_model(cls, spec: ModelConfig, tokenizer: Tokenizer, **kwargs: Any) -> "M5Processor":
        """The processor of a model section. Further keywords are those of the class."""
        return cls({name: spec.modalities[name].input for name in spec.modality_names}, tokenizer, **kwargs)

    @overload
    def __call__(self, products: Sequence[Mapping[str, Any]], *, return_tensors: None = None) -> Batch: ...

    @overload
    def __call__(self, products: Sequence[Mapping[str, Any]], *, return_tensors: str) -> dict[str, Any]: ...

    def __call__(
        self, products: Sequence[Mapping[str, Any]], *, return_tensors: str | None = None
    ) -> Batch | dict[str, Any]:
        """A batch of the products, its rows on the CPU: `model.embed(processor(products))`, which moves them.

        `return_tensors="pt"` gives the keywords of a forward instead, `model(**processor(products,
        return_tensors="pt"))`, which masks nothing; a model on a GPU takes
        `model(processor(products).to(model.device), masked=False)`.

        A product is a mapping with any of `id`, `title`, `description`, `attributes` (a mapping, or pairs of strings)
        and, named as in catalogues (`images`, `videos`, `audios`, ...), one medium or a list of them: a path, bytes,
        a PIL image, or for precomputed features an array [rows, dim] (regions: a mapping of arrays). The first
        readable medium of a list counts. What is left out is absent. Raises ValueError for an unknown field, for a
        medium that cannot be read and for tensors of another library.
        """
        if return_tensors not in (None, "pt"):
            raise ValueError(f"return_tensors must be 'pt' or left out, got {return_tensors!r}")
        if isinstance(products, Mapping):
            raise ValueError("products: give a list of products, not one mapping; write processor([product])")
        raw = [self._raw(number, product) for number, product in enumerate(products)]
        prepared = self._maker.make(raw, [philox.EVALUATION_DRAW] * len(raw))
        lost = [
            (product.id, name)
            for product, present_M in zip(raw, prepared.batch.present_BM.tolist(), strict=True)
            for name, present in zip(self.inputs, present_M, strict=True)
            if name in product.media and not present
        ]
        if lost:
            product_id, name = lost[0]
            reasons = [bad.reason for bad in prepared.bad_media if bad.product_id == product_id]
            raise ValueError(
                f"product {product_id!r}: no {name} that can be read: {'; '.join(reasons)}; leave the field out to"
                f" embed the product without it ({len(lost)} such cases in the batch)"
            )
        batch = prepared.batch.to("cpu")  # decoders leave rows on the GPU where they have one
        return batch if return_tensors is None else {"batch": batch, "masked": False}

    def save_pretrained(self, directory: str | Path) -> None:
        """Write processor_config.json, the tokenizer's folder and what AutoProcessor needs; the directory is made if
        need be.
        """
        folder = Path(directory)
        write_remote_code(folder)
        tree = {
            "processor_class": type(self).__name__,
            "auto_map": {"AutoProcessor": AUTO_MAP["AutoProcessor"]},
            "inputs": _ADAPTER.dump_python(self.inputs),
        }
        (folder / CONFIG_FILE).write_text(json.dumps(tree, indent=2) + "\n")
        self.tokenizer.save(folder / TOKENIZER_FOLDER)

    @classmethod
    def from_pretrained(cls, directory: str | Path, **kwargs: Any) -> "M5Processor":
        """What `save_pretrained` wrote; `device` and `num_threads` as the class takes them. ValueError names the file
        that is missing or damaged.
        """
        path = Path(directory) / CONFIG_FILE
        try:
            inputs = _ADAPTER.validate_json(json.dumps(json.loads(path.read_text())["inputs"]))
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}; save the processor beside the model first") from error
        except (json.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
            raise ValueError(f"{path}: not a processor's configuration: {' '.join(str(error).split())}") from error
        own = {key: value for key, value in kwargs.items() if key not in _FROM_AUTO}
        return cls(inputs, load_tokenizer(path.parent / TOKENIZER_FOLDER), **own)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """Nothing, as in `M5ForPretraining`; AutoProcessor calls it."""

    def _raw(self, number: int, product: Mapping[str, Any]) -> RawProduct:
        fields = {modality.get(name).catalogue_field: name for name in self.inputs}
        if unknown := [field for field in product if field not in fields and field not in _TEXT_FIELDS]:
            known = dict.fromkeys([*_TEXT_FIELDS, *fields])
            raise ValueError(f"product {number}: unknown field {unknown[0]!r}; known: {', '.join(known)}")
        product_id = str(product.get("id", number))
        pairs = product.get("attributes") or []
        pairs = pairs.items() if isinstance(pairs, Mapping) else pairs
        attributes = [(str(key), str(value)) for key, value in pairs]
        title, description = str(product.get("title") or ""), str(product.get("description") or "")
        media: dict[str, list[Media]] = {}
        present = set()
        for field, name in fields.items():
            held = modality.get(name).content
            if held is None:
                content: Any = _media(product.get(field), f"{product_id}.{name}")
                media[name] = content
            else:
                content = held(title, description, attributes)
            if content:
                present.add(name)
        return RawProduct(
            id=product_id,
            product=philox.product_hash(product_id),
            title=title,
            description=description,
            attributes=attributes,
            category=[],
            label=-1,
            present=frozenset(present),
            media={name: files for name, files in media.items() if files},
        )


def _media(given: Any, name: str) -> list[Media]:
    """The encoded media of one field; None is none."""
    if given is None:
        return []
    several = list(given) if isinstance(given, (list, tuple)) else [given]
    return [_medium(item, f"{name}.{number}") for number, item in enumerate(several)]


def _medium(item: Any, name: str) -> Media:
    if isinstance(item, (str, Path)):
        try:
            return Media(f"{name}{Path(item).suffix.lower()}", Path(item).read_bytes())
        except OSError as error:
            raise ValueError(f"{item}: {error.strerror}") from error
    if isinstance(item, (bytes, bytearray)):
        return Media(name, bytes(item))
    stream = io.BytesIO()
    if isinstance(item, Image.Image):
        item.save(stream, format="PNG")
        return Media(f"{name}.png", stream.getvalue())
    if isinstance(item, Mapping):
        arrays: dict[str, Any] = {key: np.asarray(value) for key, value in item.items()}
        np.savez(stream, **arrays)
        return Media(f"{name}.npz", stream.getvalue())
    if isinstance(item, np.ndarray):
        np.save(stream, item)
        return Media(f"{name}.npy", stream.getvalue())
    raise ValueError(f"{name}: a medium is a path, bytes, a PIL image or an array, got {type(item).__name__}")
