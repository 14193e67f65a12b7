"""What tests of exports share: user code in a place that holds nothing of ours, and products as files on disk."""

import os
import subprocess
import sys
from pathlib import Path

from m5ds.downstream.embed.evaluation_data import EvaluationData

PRELUDE = """
import sys
sys.modules["nvidia.dali"] = None
import numpy as np, torch
from transformers import AutoConfig, AutoModel, AutoProcessor
"""


def run_in_an_empty_folder(tmp_path: Path, code: str, prelude: str = PRELUDE) -> str:
    """stdout of the code, run where no file of ours lies and nothing but site-packages can be imported."""
    empty = tmp_path / "empty"
    empty.mkdir(exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [sys.executable, "-c", prelude + code], cwd=empty, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def write_media(folder: Path, products) -> list[dict]:
    """The products as their owner has them: files on disk and strings; in JSON."""
    fields = {"image": "images", "video": "videos", "audio": "audios"}
    raw = []
    for place, product in enumerate(products):
        given = {"id": product.id, "title": product.title, "description": product.description}
        given["attributes"] = dict(product.attributes)
        for name, media in product.media.items():
            paths = []
            for number, medium in enumerate(media):
                path = folder / f"{place}-{name}-{number}{Path(medium.name).suffix}"
                path.write_bytes(medium.data)
                paths.append(str(path))
            given[fields[name]] = paths
        raw.append(given)
    return raw


def read_products(data: EvaluationData):
    """The split's products as the shards hold them, in the engine's order."""
    return [
        data.reader.read(shard, index) for shard, size in enumerate(data.reader.shard_sizes) for index in range(size)
    ]
