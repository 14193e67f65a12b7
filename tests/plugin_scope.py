"""What a test's plugins register is forgotten when the test ends, as it is when a process does."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from m5ds import modality, plugins
from m5ds.inputs import registry
from m5ds.model import configuration


@contextmanager
def forgotten() -> Iterator[None]:
    """Modalities, input kinds and plugins that are loaded inside are gone afterwards."""
    kinds, loaded, modules = dict(registry._KINDS), dict(plugins._LOADED), set(sys.modules)
    with modality.extended():
        try:
            yield
        finally:
            for known, before in ((registry._KINDS, kinds), (plugins._LOADED, loaded)):
                known.clear()
                known.update(before)
            configuration._parsed.cache_clear()
            for name in [name for name in set(sys.modules) - modules if name.startswith("m5ds_plugin_")]:
                del sys.modules[name]
