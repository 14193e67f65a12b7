"""What a test's plugins register is forgotten when the test ends, as it is when a process does."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from m5ds import modality, plugins
from m5ds.inputs import registry
from m5ds.model import configuration
from m5ds.model.objectives import base


@contextmanager
def forgotten() -> Iterator[None]:
    """Modalities, input kinds, objectives and plugins that are loaded inside are gone afterwards."""
    registries = (registry._KINDS, base._KINDS, plugins._LOADED)
    before, modules = [dict(known) for known in registries], set(sys.modules)
    with modality.extended():
        try:
            yield
        finally:
            for known, kept in zip(registries, before, strict=True):
                known.clear()
                known.update(kept)
            configuration._parsed.cache_clear()
            for name in [name for name in set(sys.modules) - modules if name.startswith("m5ds_plugin_")]:
                del sys.modules[name]
