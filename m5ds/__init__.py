"""m5ds: pretraining of product models over image, text, table, video and audio, where any of them may be missing."""

__version__ = "0.1.0"
