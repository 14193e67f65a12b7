"""Installs `m5ds` and, from the top-level folder `kernels/`, `m5ds.kernels` (docs/dependencies.md says why)."""

from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
PINS = {
    line.split("==")[0].strip(): line.strip()
    for line in (HERE / "constraints.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")
}

CORE = [
    "torch",
    "deepspeed",
    "transformers",
    "accelerate",
    "webdataset",
    "triton",
    "sentencepiece",
    "tensorboard",
    "av",
    "pyarrow",
    "fsspec",
    "omegaconf",
    "pydantic",
    "numpy",
    "pillow",
    "tqdm",
    "psutil",
    "matplotlib",
    "safetensors",
]
DOWNSTREAM = ["scikit-learn", "scipy", "faiss-cpu", "peft", "pandas"]
DEVELOPMENT = [
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "coverage",
    "ruff",
    "mypy",
    "codespell",
    "hypothesis",
    "pre_commit",
    "ranx",
    "imageio-ffmpeg",
]


def pinned(names: list[str]) -> list[str]:
    return [PINS[name] for name in names]


setup(
    name="m5ds",
    version="0.1.0",
    description="Pretraining of five-modality product models with DeepSpeed ZeRO-3, DALI and Triton",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        "m5ds",
        "m5ds.data",
        "m5ds.model",
        "m5ds.train",
        "m5ds.downstream",
        "m5ds.kernels",
        *(f"m5ds.kernels.{path.parent.name}" for path in sorted((HERE / "kernels").glob("*/__init__.py"))),
    ],
    package_dir={"m5ds": "m5ds", "m5ds.kernels": "kernels"},
    install_requires=pinned(CORE + DOWNSTREAM),
    extras_require={
        "dali-cuda120": pinned(["nvidia-dali-cuda120"]),
        "dali-cuda130": ["nvidia-dali-cuda130" + PINS["nvidia-dali-cuda120"].removeprefix("nvidia-dali-cuda120")],
        "dev": pinned(DEVELOPMENT),
    },
)
