"""Input kinds: what one product's rows of a modality are. One file a kind; base.py says what a kind is.

Raw media cut into units, tokens, or precomputed features: the data layer makes the rows, the model's embedder consumes
them, and both ask the kind.
"""

from m5ds.inputs.audio_patches import AudioPatches
from m5ds.inputs.base import STRICT, InputKind
from m5ds.inputs.feature_rows import FeatureRows
from m5ds.inputs.image_patches import ImagePatches
from m5ds.inputs.region_features import RegionFeatures
from m5ds.inputs.registry import InputSpec, kinds, register
from m5ds.inputs.table_pairs import TablePairs
from m5ds.inputs.text_tokens import TextTokens
from m5ds.inputs.video_tubes import VideoTubes
