"""The file by which a saved folder tells transformers' Auto classes where its classes are.

`AutoModel.from_pretrained(folder, trust_remote_code=True)` runs the file that `auto_map` names. Ours holds no model: it
imports the installed m5ds, so that a folder never carries a second copy of the code.
"""

from os import PathLike
from pathlib import Path

MODULE = "modeling_m5ds"
AUTO_MAP = {
    "AutoConfig": f"{MODULE}.M5Config",
    "AutoModel": f"{MODULE}.M5ForPretraining",
    "AutoModelForPreTraining": f"{MODULE}.M5ForPretraining",
    "AutoProcessor": f"{MODULE}.M5Processor",
}
_CODE = '''"""Where transformers' Auto classes find this model: in the package m5ds, which must be installed."""

try:
    from m5ds.hub import M5Config, M5ForPretraining, M5Processor
except ModuleNotFoundError as error:
    raise ImportError(
        f"this model is loaded by the package m5ds, and {error.name} is missing: run `pip install .` in a clone of"
        " m5ds's repository"
    ) from error

__all__ = ["M5Config", "M5ForPretraining", "M5Processor"]
'''


def write_remote_code(directory: str | PathLike[str]) -> None:
    """Write modeling_m5ds.py; the directory is made if need be."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{MODULE}.py").write_text(_CODE)
