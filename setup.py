"""Installs `m5ds` and, from the top-level folder `kernels/`, `m5ds.kernels` (docs/dependencies.md says why).

Ranges, so that it can stand beside other libraries: a lower bound is the oldest version that was tried; an upper one
stands only where a newer version is known not to work. `make install` adds `--constraint constraints.txt` and so gets
exactly the versions that the tests run with.
"""

from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent

# What an exported model needs: embed products and search them.
CORE = [
    "torch>=2.11",
    "triton>=3.6",
    "transformers>=5.17",
    "safetensors>=0.8",
    "sentencepiece>=0.2.2",
    "omegaconf>=2.4",
    "pydantic>=2.14",
    "numpy>=2.4",
    "pillow>=13",
    "av>=18",
    "pyarrow>=26",
    "fsspec>=2026.9",
    "tqdm>=4.70",
    "faiss-cpu>=1.15",
    "matplotlib>=3.11",
    "scikit-learn>=1.9",
    "scipy>=1.17",
]
# Pretraining and finetuning, and the shards that they read.
TRAIN = [
    "deepspeed>=0.19.8",
    "accelerate>=1.15",
    "webdataset>=1.0.2",
    "tensorboard>=2.21",
    "psutil>=7.2",
    "peft>=0.21",
    "pandas>=3.1",
]
DEVELOPMENT = [
    "pytest>=9.2",
    "pytest-timeout>=2.4",
    "pytest-xdist>=3.8",
    "coverage>=7.17",
    "ruff",
    "mypy",
    "codespell",
    "hypothesis>=6.170",
    "pre_commit",
    "ranx>=0.3.21",
    "imageio-ffmpeg>=0.8",
]


def rooms(top: str) -> list[str]:
    """Packages below a top-level folder: `""` for itself, `.data.shards` for a room in a room."""
    folders = sorted(path.parent.relative_to(HERE / top) for path in (HERE / top).rglob("__init__.py"))
    return ["".join(f".{part}" for part in folder.parts) for folder in folders]


setup(
    name="m5ds",
    version="0.1.0",
    description="Pretraining of five-modality product models with DeepSpeed ZeRO-3, DALI and Triton",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[f"m5ds{room}" for room in rooms("m5ds")] + [f"m5ds.kernels{room}" for room in rooms("kernels")],
    package_dir={"m5ds": "m5ds", "m5ds.kernels": "kernels"},
    install_requires=CORE,
    extras_require={
        "train": TRAIN,
        "dali-cuda120": ["nvidia-dali-cuda120>=2.4"],
        "dali-cuda130": ["nvidia-dali-cuda130>=2.4"],
        "dev": [*TRAIN, *DEVELOPMENT],
    },
)
