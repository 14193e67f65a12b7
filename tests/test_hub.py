"""What an exported folder's code imports makes transformers' Auto classes know m5ds."""

import importlib

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from m5ds import hub
from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining
from m5ds.processor import M5Processor


def test_the_auto_classes_find_config_model_and_processor() -> None:
    assert type(AutoConfig.for_model(M5Config.model_type)) is M5Config
    assert AutoModel._model_mapping[M5Config] is M5ForPretraining
    assert AutoModelForPreTraining._model_mapping[M5Config] is M5ForPretraining
    assert PROCESSOR_MAPPING[M5Config] is M5Processor


def test_the_names_that_exported_code_imports_are_here() -> None:
    assert set(hub.__all__) == {"M5Config", "M5ForPretraining", "M5Processor"}


def test_importing_it_again_is_no_error() -> None:
    """Two exported folders in one process each import it through transformers' dynamic modules."""
    importlib.reload(hub)
