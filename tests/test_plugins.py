"""Plugins are imported once, before what they register is read; one that cannot be is one line."""

import sys

import pytest
from plugin_scope import forgotten

from m5ds import config, modality, plugins
from m5ds.config import ConfigError
from m5ds.inputs import ImagePatches, kinds, register

RUN = """
name: x
plugins: {plugins}
model: {{hidden_size: 8, num_heads: 2, modalities: {{scent: {{embedder: feature_rows, head: regression,
  input: {{kind: feature_rows, rows: 2, dim: 3}}}}}}}}
train: {{total_steps: 1}}
"""
SCENT = """
from m5ds import modality
modality.register(modality.Modality(name="scent", number={number}, catalogue_field="scents", task="msp"))
"""


@pytest.fixture
def at(tmp_path, monkeypatch):
    """A folder to run in, and a writer of its files; what its plugins register is forgotten."""
    monkeypatch.chdir(tmp_path)
    with forgotten():
        yield lambda name, text: (tmp_path / name).write_text(text)


def load(at, written):
    at("run.yaml", RUN.format(plugins=written))
    return config.load("run.yaml")


def test_a_file_is_named_relative_to_the_working_directory_and_imported_once(at, tmp_path):
    at("scent.py", SCENT.format(number=9))
    assert plugins.not_loaded(["scent.py"]) == ["scent.py"]
    run = load(at, "[scent.py]")
    assert run.plugins == ["scent.py"] and run.model.modality_names == ("scent",)
    assert modality.get("scent").number == 9
    for again in ("[scent.py]", "[./scent.py]", f"[{tmp_path}/scent.py]"):
        assert load(at, again).model.modality_names == ("scent",)
    assert plugins.not_loaded(["scent.py", "./scent.py", "other.py"]) == ["other.py"]


def test_a_module_is_named_as_python_imports_it(at, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    at("scent_module.py", SCENT.format(number=9))
    assert load(at, "[scent_module]").model.modality_names == ("scent",)
    del sys.modules["scent_module"]


def test_an_override_may_name_plugins(at):
    at("scent.py", SCENT.format(number=9))
    at("run.yaml", RUN.format(plugins="[]"))
    with pytest.raises(ConfigError, match="unknown modality 'scent'"):
        config.load("run.yaml")
    assert config.load("run.yaml", ["plugins=[scent.py]"]).model.modality_names == ("scent",)


@pytest.mark.parametrize(
    ("written", "text", "message"),
    [
        ("[none.py]", None, r"run.yaml: plugins: 'none.py' cannot be imported: .*No such file"),
        ("[no_such_module_at_all]", None, "run.yaml: plugins: 'no_such_module_at_all' cannot be imported: No module"),
        ("[bad.py]", "def", r"run.yaml: plugins: 'bad.py' cannot be imported: .*invalid syntax|expected"),
        ("[bad.py]", "import no_such_module_at_all", "'bad.py' cannot be imported: No module named"),
        ("[bad.py]", SCENT.format(number=4), "'bad.py' cannot be imported: modality 'scent': number 4 is audio's"),
        ("scent.py", None, r"run.yaml: plugins: Input should be a valid array, got 'scent.py'"),
        ("[3]", None, r"run.yaml: plugins.0: Input should be a valid string, got 3"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_one_line(at, written, text, message):
    if text is not None:
        at("bad.py", text)
    with pytest.raises(ConfigError, match=message) as caught:
        load(at, written)
    assert "\n" not in str(caught.value)
    assert not [name for name in sys.modules if name.startswith("m5ds_plugin_bad")]


def test_a_defect_of_a_plugin_keeps_its_own_error(at):
    at("bad.py", "1 / 0")
    with pytest.raises(ZeroDivisionError):
        load(at, "[bad.py]")


def test_a_kind_that_is_registered_already_is_refused():
    with pytest.raises(ValueError, match="input kind 'image_patches' is registered already, by m5ds.inputs.image_pat"):
        register(ImagePatches)
    assert kinds()["image_patches"] is ImagePatches
