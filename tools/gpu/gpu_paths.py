"""Make this checkout importable where nothing can be installed: `m5ds` with its kernels, and a bundle's wheels.

Standard library only: it runs before anything else can be imported.
"""

import shutil
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def link_packages(folder: Path) -> Path:
    """Make `folder`/m5ds of links to this checkout, kernels/ as `m5ds.kernels` (setup.py's package_dir). `folder`."""
    package = folder / "m5ds"
    package.mkdir(parents=True)
    for entry in sorted((ROOT / "m5ds").iterdir()):
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    (package / "kernels").symlink_to(ROOT / "kernels")
    return folder


def unpack_wheels(bundle: Path, folder: Path) -> Path:
    """Unpack every wheel of `bundle` as pip would, scripts and headers left out. `folder`.

    `ValueError` where there is no wheel or two of one package, of which it would be chance which wins.
    """
    wheels = sorted(bundle.glob("*.whl"))
    if not wheels:
        raise ValueError(f"--bundle {bundle}: holds no wheels; make it with tools/gpu_bundle.py")
    names = [wheel.name.split("-")[0].lower() for wheel in wheels]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"--bundle {bundle}: several wheels of {', '.join(twice)}; leave one of each")
    folder.mkdir(parents=True)
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{wheel}: not a wheel: {error}") from error
        name, version = wheel.name.split("-")[:2]
        data = folder / f"{name}-{version}.data"
        for part in ("purelib", "platlib"):
            if (data / part).is_dir():
                shutil.copytree(data / part, folder, dirs_exist_ok=True)
        shutil.rmtree(data, ignore_errors=True)
    return folder
