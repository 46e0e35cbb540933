"""What each command takes. Nothing here needs torch: help comes at once."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from functools import partial
from pathlib import Path

from inpaint_module.cli.parser import Parser

PRESETS = (  # what `inpaint_module.masks.presets()` gives, whose import takes seconds
    *("lama-thin", "lama-medium", "lama-thick", "lama-train", "sd", "sdxl", "deepfill", "comodgan", "mat", "outpaint"),
    *("brushnet", "cloud", "blob", "polygon", "repaint-half", "repaint-expand", "repaint-every-second-line"),
    *("repaint-superres", "boxes", "grid"),
)
DTYPES = ["float32", "bfloat16", "float16"]
SHARD_BYTES = 256_000_000


def shards_make() -> Parser:
    """`inpaint shards make`."""
    parser = Parser("shards make", "datamodules.make_shards")
    parser.add_argument("source", help="folder of images, text file with one path a line, or table")
    _add_shard_options(parser)
    number = partial(parser.add_argument, type=int, metavar="N")
    number("--samples-per-shard", help="start a new tar after N samples (default: by size alone)")
    number("--short-side", help="shrink larger images to N pixels at their short side (default: copied unchanged)")
    number("--max-side", help="shrink larger images to N pixels at their long side (default: copied unchanged)")
    number("--quality", default=92, help="of shrunk JPEG and WEBP, 1 to 100 (default %(default)s)")
    number("--max-pixels", default=50_000_000, help="refuse images of more than N pixels (default %(default)s)")
    _add_flag(parser, "--skip-bad", "leave out images that cannot be used (default: refuse all)")
    _add_workers(parser)
    _add_reading(parser)
    _add_columns(parser)
    return parser


def shards_index() -> Parser:
    """`inpaint shards index`."""
    parser = Parser("shards index", "datamodules.index_shards")
    parser.add_argument("shards", help="folder, tar, pattern, URL, or text file of these")
    parser.add_argument("out", nargs="?", help="local folder for manifest and index files (default: beside the tars)")
    _add_workers(parser)
    text = "count members with these suffixes as left aside, as asked for, such as npy,embedding.bin (default: none)"
    parser.add_argument("--ignore", metavar="A,B", default="", help=text)
    text = "refuse images whose header cannot be read (default: their size is recorded as 0 x 0)"
    _add_flag(parser, "--strict", text)
    _add_flag(parser, "--keep-going", "look at all tars, then list all bad ones (default: stop at the first)")
    return parser


def shards_cache_latents() -> Parser:
    """`inpaint shards cache-latents`."""
    parser = Parser("shards cache-latents", "datamodules.cache_latents", parts=("model", "data"))
    _add_shard_options(parser)
    parser.add_argument("--crops", type=int, metavar="N", default=1, help="crops of each image (default %(default)s)")
    text = f"of the latents: {', '.join(DTYPES)} (default %(default)s)"
    parser.add_argument("--dtype", default="float32", metavar="NAME", help=text)
    _add_device(parser)
    return parser


def shards_cache_text() -> Parser:
    """`inpaint shards cache-text`."""
    parser = Parser("shards cache-text", "datamodules.cache_text", parts=("model", "data"))
    parser.add_argument("out", type=Path, help="folder of the cache; one that is there gets what it has not yet")
    text = "another caption, such as one for predict; again for more (default: those of the config's data)"
    parser.add_argument("--caption", metavar="TEXT", action="append", default=[], help=text)
    text = f"of the embeddings: {', '.join(DTYPES)} (default %(default)s)"
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES, metavar="NAME", help=text)
    _add_device(parser)
    return parser


def predict() -> Parser:
    """`inpaint predict`."""
    parser = Parser("predict", "datamodules.predict", parts=("model",), default="the small model that ships")
    parser.add_argument("pictures", type=Path, help="folder of images, with its subfolders")
    parser.add_argument("out", type=Path, help="folder for the PNGs, named as the pictures")
    text = "a folder of masks with the pictures' names, or a pattern such as '{name}_mask*.png', from each picture's "
    parser.add_argument("--masks", metavar="PATTERN", help=f"{text}folder (default: NAME.mask.png beside NAME)")
    text = "paint masks instead: one that `inpaint masks --help` names"
    parser.add_argument("--preset", metavar="NAME", help=text)
    text = "weights, such as runs/quickstart/checkpoints/last.ckpt (default: those that the config loads)"
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help=text)
    text = "for models with text encoders, of pictures without a NAME.txt (default: an empty one)"
    parser.add_argument("--caption", default="", metavar="TEXT", help=text)
    _add_flag(parser, "--inverted-masks", "black = inpaint (default: white)")
    text = "inpaint where mask files are transparent, as ComfyUI saves them (default: white)"
    _add_flag(parser, "--transparent-masks", text)
    text = "inpaint with the random weights of a config that loads none, such as to try its speed"
    _add_flag(parser, "--untrained", text)
    _add_flag(parser, "--skip-bad", "leave out pictures that cannot be read, list them, and end with exit code 1")
    number = partial(parser.add_argument, type=int, metavar="N")
    text = "denoiser calls a picture (default: the config's); 1 gives the mean of all fills, blurred but right; "
    number("--steps", help=f"{text}more give one fill with its texture, which is further from the hidden one by PSNR")
    text = "bring the hole's surroundings down to N pixels a side (default: the images of the config's data, or what "
    number("--working-side", help=f"{text}the model was made for; 0: full size)")
    number("--margin", help="pixels of context around the hole (default: half the hole, or up to --working-side)")
    number("--tile", help="pixels of each side that are seen at once (default: what --working-side is by default)")
    number("--overlap", help="pixels that neighbouring tiles share (default: a quarter of a tile)")
    _add_flag(parser, "--no-blend", "leave the fill as the model makes it (default: it is moved to meet the photo)")
    text = "where masks are painted, also say how near the fills are to what was there, beside fills without a model"
    _add_flag(parser, "--score", text)
    number("--seed", default=0, help="of painted masks (default %(default)s)")
    return parser


def app() -> Parser:
    """`inpaint app`."""
    parser = Parser("app", "inpaint_module.app", parts=("model",), default="the small model that ships")
    text = "weights of --config (default: those that the config loads)"
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help=text)
    text = "folder of run folders to choose from (default %(default)s)"
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER", help=text)
    text = (
        "address of this machine to serve at; 0.0.0.0 opens the page to everyone who reaches it (default %(default)s)"
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help=text)
    text = "where to serve there (default: the first free one from 7860 on)"
    parser.add_argument("--port", type=_positive, metavar="N", help=text)
    return parser


def doctor() -> Parser:
    """`inpaint doctor`."""
    parser = Parser("doctor", "datamodules.doctor.command", parts=("model", "data"))
    parser.add_argument("--batches", type=_positive, metavar="N", default=4, help="batches to read (default 4)")
    text = "write a sheet of samples there, with --all the page (default: no sheet; with --all doctor.html)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=text)
    text = "look at every sample of train_shards, without a model, and write one page"
    _add_flag(parser, "--all", f"{text}: sizes, buckets, captions, masks, near-duplicates, bad files")
    _add_flag(parser, "--strict", "exit code 1 for warnings too (default: for errors)")
    text = "how long to wait for a batch (default 120)"
    parser.add_argument("--timeout", type=_seconds, metavar="SECONDS", default=120.0, help=text)
    _add_device(parser)
    _add_flag(parser, "--no-step", "leave out the training step, which needs its memory")
    return parser


def masks() -> Parser:
    """`inpaint masks`."""
    parser = Parser("masks", "inpaint_module.masks.gallery")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--preset", metavar="NAME", help=f"one of {', '.join(PRESETS)}")
    text = "YAML file of a training run, or of a mask generator alone"
    source.add_argument("--config", type=Path, metavar="FILE", help=text)
    parser.add_argument("--out", type=Path, required=True, metavar="PNG", help="where the sheet goes")
    text = "photos to lay masks over (default: the embedded ones)"
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help=text)
    number = partial(parser.add_argument, metavar="N")
    number("--number", type=_positive, default=256, help="masks to paint and measure (default %(default)s)")
    text = "height and width of the masks in pixels (default %(default)s)"
    number("--size", type=_positive, default=512, help=text)
    number("--seed", type=int, default=0, help="of the masks (default %(default)s)")
    return parser


def export() -> Parser:
    """`inpaint export`."""
    parser = Parser("export", "inpaint_module.export", parts=("model",))
    parser.add_argument("out", type=Path, help="folder for the pipeline; a new or an empty one")
    text = "such as runs/NAME/checkpoints/last.ckpt"
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help=text)
    text = "the weights of the run's last step (default: of a run with EMA the averaged ones)"
    _add_flag(parser, "--last-step", text)
    _add_flag(parser, "--fuse", "add LoRA factors to the weights (default: a file of their own beside the weights)")
    _add_flag(parser, "--lora-only", "write the LoRA factors alone (default: all)")
    parser.add_argument("--dtype", choices=DTYPES, help="of the denoiser's weights (default: as trained)")
    return parser


def compare() -> Parser:
    """`inpaint compare`."""
    parser = Parser("compare", "inpaint_module.compare_runs")
    parser.add_argument("runs", nargs="+", help="run folders, such as runs/quickstart")
    parser.add_argument("--out", type=Path, metavar="HTML", help="also write a page with the grids (default: none)")
    return parser


def _positive(value: str | int) -> int:
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise ArgumentTypeError(f"expected a whole number of at least 1, got {value}")
    return number


def _seconds(value: str | float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not number > 0:
        raise ArgumentTypeError(f"expected a number of seconds above 0, got {value}")
    return number


def _add_flag(parser: Parser, name: str, text: str) -> None:
    parser.add_argument(name, action="store_true", help=text)


def _add_device(parser: Parser) -> None:
    text = "where the model works: cpu, cuda, cuda:1, ...; auto is a GPU if there is one (default %(default)s)"
    parser.add_argument("--device", default="auto", metavar="NAME", help=text)


def _add_workers(parser: Parser) -> None:
    text = "processes (default: one per core)"
    parser.add_argument("--workers", type=int, metavar="N", default=os.cpu_count(), help=text)


def _add_shard_options(parser: Parser) -> None:
    text = "folder for the shards; holds none, or an unfinished run of this command"
    parser.add_argument("out", type=Path, help=text)
    text = "size of a tar in bytes, about (default %(default)s)"
    parser.add_argument("--shard-bytes", type=int, metavar="N", default=SHARD_BYTES, help=text)


def _add_reading(parser: Parser) -> None:
    text = "where masks are besides NAME.mask.png: '{name}_mask*.png' or 'masks/{name}.png', from each photo's folder, "
    parser.add_argument(
        "--masks", metavar="PATTERN", help=f"{text}or a folder of masks with the photos' names (default: nowhere)"
    )
    for name, where in (("inverted", "black"), ("transparent", "transparent, as ComfyUI saves them")):
        text = f"inpaint where mask files are {where}; they are written with white = inpaint (default: white)"
        _add_flag(parser, f"--{name}-masks", text)
    text = "of captions, tables and lists without a byte-order mark, such as latin-1 (default %(default)s)"
    parser.add_argument("--caption-encoding", metavar="NAME", default="utf-8", help=text)


def _add_columns(parser: Parser) -> None:
    table = parser.add_argument_group("columns of a table")
    for purpose, text in {
        "image": "paths (default: path, image, file_name and the like)",
        "caption": "captions (default: caption, text, prompt and the like; '' for none)",
        "mask": "paths of masks (default: mask, mask_path and the like; '' for none)",
        "label": "class numbers (default: label, cls and the like; '' for none)",
        "target": "paths of target pictures (default: target, target_path and the like; '' for none)",
        "instruction": "texts of pairs, for the captions (default: instruction, edit_prompt and the like; '' for none)",
        "reference": "paths of reference pictures (default: reference, reference_path and the like; '' for none)",
    }.items():
        table.add_argument(f"--{purpose}-column", metavar="NAME", help=text)
    text = "more columns to keep, in each sample's json (default: none)"
    table.add_argument("--json-columns", metavar="A,B", default="", help=text)
