"""Raw products to features: the processor, alone and beside a saved model."""

import io
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m5ds import config, modality
from m5ds.data.tokenizer import train_tokenizer
from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining
from m5ds.processor import M5Processor

ROOT = Path(__file__).parents[1]
TINY = """
  hidden_size: 16
  num_heads: 2
  ffn_dim: 24
  modalities:
    image: {input: {size: 12, patch: 4}}
    video: {mask_unit: row, embedder: feature_rows, input: {kind: feature_rows, rows: 4, dim: 6}}
    audio: {input: {seconds: 0.6, num_mels: 16, patch_mels: 8, n_fft: 256}}
  blocks: {unimodal: {repeat: 1}}
"""


@pytest.fixture(scope="module")
def tokenizer():
    words = ["red shoe", "blue coat", "green hat", "colour", "size", "material", "cotton", "leather"]
    with pytest.warns(UserWarning, match="fewer than vocab_size"):
        return train_tokenizer([f"{a} {b}" for a in words for b in words], 600)


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"name: tiny\nmodel:\n  base: {ROOT}/configs/model/m5mmt.yaml\n{TINY}\ntrain: {{total_steps: 1}}\n")
    return config.load(path).model


def tone(seconds: float = 0.5) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16000)
        steps = np.arange(int(16000 * seconds))
        sound.writeframes((8000 * np.sin(steps / 9)).astype("<i2").tobytes())
    return stream.getvalue()


def picture(colour: str = "red") -> Image.Image:
    return Image.new("RGB", (20, 16), colour)


def test_products_of_every_kind_of_medium_become_a_batch(tmp_path, spec, tokenizer):
    picture().save(tmp_path / "red.jpg")
    batch = M5Processor.for_model(spec, tokenizer)(
        [
            {"id": "a", "title": "red shoe", "images": tmp_path / "red.jpg", "audios": [tone()]},
            {"attributes": {"colour": "red"}, "images": [picture()], "videos": np.ones((3, 6))},
            {},
        ]
    )
    assert batch.ids == ["a", "1", "2"]
    present = [["image", "text", "audio"], ["image", "table", "video"], []]
    for found, names in zip(batch.present_BM.tolist(), present, strict=True):
        assert [name for name, is_there in zip(batch.modalities, found, strict=True) if is_there] == names
    assert batch.modalities["image"].length_B.tolist() == [9, 9, 0]
    assert batch.modalities["video"].values_NF.shape == (3, 6)


def test_a_saved_model_and_processor_give_the_same_features(tmp_path, spec, tokenizer):
    processor = M5Processor.for_model(spec, tokenizer)
    model = M5ForPretraining(M5Config.for_tokenizer(spec, tokenizer)).eval()
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    products = [{"title": "blue coat", "images": picture("blue"), "attributes": [["size", "small"]]}]
    again = M5Processor.from_pretrained(tmp_path / "saved")
    assert again.inputs == processor.inputs
    with torch.no_grad():
        expected = model(processor(products), masked=False)
        found = M5ForPretraining.from_pretrained(tmp_path / "saved").eval()(again(products), masked=False)
    assert torch.equal(expected.fused_BMD, found.fused_BMD)
    assert expected.fused_BMD[0, :3].abs().sum(1).all() and not expected.fused_BMD[0, 3:].any()


@pytest.mark.parametrize(
    ("product", "message"),
    [
        ({"image": picture()}, "product 0: unknown field 'image'; known: id, title, description, attributes, images"),
        ({"id": "x", "images": b"junk"}, "product 'x': no image that can be read: .*leave the field out"),
        ({"images": "/nowhere.jpg"}, "/nowhere.jpg: No such file"),
        ({"images": 3}, "a medium is a path, bytes, a PIL image or an array, got int"),
        ({"videos": np.ones((3, 5))}, r"expected \(rows, 6\)"),
    ],
)
def test_what_cannot_be_read_is_an_error(spec, tokenizer, product, message):
    with pytest.raises(ValueError, match=message):
        M5Processor.for_model(spec, tokenizer)([product])


def test_the_first_readable_medium_counts(spec, tokenizer):
    batch = M5Processor.for_model(spec, tokenizer)([{"images": [b"junk", picture()]}])
    assert batch.present_BM[0].tolist() == [name == "image" for name in modality.names()]


def test_a_folder_without_processor_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="processor_config.json: No such file or directory; save the processor"):
        M5Processor.from_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text("{}")
    with pytest.raises(ValueError, match="not a processor's configuration"):
        M5Processor.from_pretrained(tmp_path)
