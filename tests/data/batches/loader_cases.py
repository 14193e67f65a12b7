"""The inputs and data that the loader's tests run on, and what a batch holds as comparable values."""

from m5ds.config import DataConfig, ModalityConfig, TokenizerConfig
from m5ds.inputs import (
    AudioPatches,
    ImagePatches,
    TablePairs,
    TextTokens,
    VideoTubes,
)

INPUTS = {
    "image": ImagePatches(size=24, patch=12),
    "text": TextTokens(max_tokens=24),
    "table": TablePairs(max_tokens=32),
    "video": VideoTubes(frames=2, size=16, patch=16),
    "audio": AudioPatches(seconds=0.6, num_mels=20, patch_mels=20),
}
MODALITIES = {name: ModalityConfig(input=spec, embedder="any", head="any") for name, spec in INPUTS.items()}
DATA = DataConfig(
    quickstart_products=60,
    tokenizer=TokenizerConfig(vocab_size=600),
    chunk_size=4,
    window_chunks=3,
    modality_dropout=0.1,
)
G = 12


def products(batch):
    """Everything the model sees of each product, as comparable values, in batch order."""
    starts = dict.fromkeys(batch.modalities, 0)
    seen = []
    for b, name in enumerate(batch.ids):
        rows = {}
        for m, (modality_name, packed) in enumerate(batch.modalities.items()):
            length, start = int(packed.length_B[b]), starts[modality_name]
            starts[modality_name] += length
            assert bool(batch.present_BM[b, m]) == (length > 0)
            for field in ("position_N", "unit_N", "part_N", "values_NF", "token_N", "geometry_N5"):
                tensor = getattr(packed, field)
                if tensor is not None:
                    rows[modality_name, field] = tensor[start : start + length].numpy().tobytes()
        seen.append((name, int(batch.product_B[b]), int(batch.draw_B[b]), int(batch.label_B[b]), tuple(rows.items())))
    assert all(starts[name] == packed.num_rows for name, packed in batch.modalities.items())
    return seen


def step_products(step):
    return [product for batch in step.micro_batches for product in products(batch)]


def take(loader, num_steps, position=0):
    return list(loader.steps(position, num_steps))
