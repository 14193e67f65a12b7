"""What an exported folder's modeling_m5ds.py imports. Importing this makes transformers' Auto classes know m5ds."""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoProcessor

from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining
from m5ds.processor import M5Processor

__all__ = ["M5Config", "M5ForPretraining", "M5Processor"]

AutoConfig.register(M5Config.model_type, M5Config)
AutoModel.register(M5Config, M5ForPretraining)
AutoModelForPreTraining.register(M5Config, M5ForPretraining)
AutoProcessor.register(M5Config, M5Processor)
