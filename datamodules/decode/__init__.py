"""One sample: bytes to an upright, cropped image, its caption, its mask, its cached latents."""

from datamodules.decode.annotations import RunLengths, check_runs, parse_annotations
from datamodules.decode.captions import (
    CaptionOptions,
    check_encoding,
    decode_text,
    parse_caption,
    parse_label,
    read_json,
)
from datamodules.decode.coco_masks import CocoMask
from datamodules.decode.conversion import (
    CMYK,
    ORIENTATION,
    StoredPicture,
    is_picture,
    stored_picture,
    suffix_of,
    why_unread,
)
from datamodules.decode.latent_cache import DTYPES, KEPT_SIZES, check_use, find_tag, pack_latents
from datamodules.decode.mask_files import InvertedMasksWarning, look_inverted, mask_of, mask_turn, why_look
from datamodules.decode.mask_sources import (
    AlphaMask,
    DataMasks,
    FileMask,
    LabelMap,
    MaskOptions,
    MaskRequest,
    MaskSource,
    read_labels,
)
from datamodules.decode.profiles import UnusableProfile, colour_mode, from_srgb, profile_of
from datamodules.decode.reading import (
    Turn,
    has_alpha,
    image_size,
    open_image,
    open_upright,
    read_turn,
    to_rgb,
    upright,
    upright_size,
)
from datamodules.decode.sample_decoder import DecoderOptions, SampleDecoder
from datamodules.shards.shard_set import image_bytes

__all__ = [
    "CMYK",
    "DTYPES",
    "KEPT_SIZES",
    "ORIENTATION",
    "AlphaMask",
    "CaptionOptions",
    "CocoMask",
    "DataMasks",
    "DecoderOptions",
    "FileMask",
    "InvertedMasksWarning",
    "LabelMap",
    "MaskOptions",
    "MaskRequest",
    "MaskSource",
    "RunLengths",
    "SampleDecoder",
    "StoredPicture",
    "Turn",
    "UnusableProfile",
    "check_encoding",
    "check_runs",
    "check_use",
    "colour_mode",
    "decode_text",
    "find_tag",
    "from_srgb",
    "has_alpha",
    "image_bytes",
    "image_size",
    "is_picture",
    "look_inverted",
    "mask_of",
    "mask_turn",
    "open_image",
    "open_upright",
    "pack_latents",
    "parse_annotations",
    "parse_caption",
    "parse_label",
    "profile_of",
    "read_json",
    "read_labels",
    "read_turn",
    "stored_picture",
    "suffix_of",
    "to_rgb",
    "upright",
    "upright_size",
    "why_look",
    "why_unread",
]
