"""Findings: what is wrong with a run's data, said so that it can be mended; each check is a function of measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from datamodules.decode.mask_files import look_inverted
from datamodules.doctor.data_measures import Captions, Masks, Pairs, Pixels, Sizes, StoredSamples
from datamodules.doctor.model_measures import Grid, Latents

ERROR, WARNING = "error", "warning"
_SHOWN = 3  # keys of samples in a message
_FEW, _MANY = 0.02, 0.2  # shares of samples: fewer is no news, more is an error
_SLACK = 1e-3  # of float pixels, past 0 and 1


class Finding(NamedTuple):
    """What one check has to say.

    Attributes:
        severity: "error", with which training is wrong or impossible, or "warning".
        title: the fault in a few words.
        where: the config's key, or the part of a sample.
        expected: what should have come.
        came: what came.
        advice: what to do.
        keys: of the samples in question.
    """

    severity: str
    title: str
    where: str
    expected: str
    came: str
    advice: str
    keys: tuple[str, ...] = ()


def named(keys: Sequence[str]) -> str:
    """The first few of the keys, each once, and how many more."""
    keys = list(dict.fromkeys(keys))
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more


def _graded(keys: Sequence[str], count: int, few: float = _FEW) -> str | None:
    """How bad it is that of `count` samples these are in question; None for not at all."""
    share = len(keys) / max(count, 1)
    return None if share <= few else ERROR if share > _MANY else WARNING


def check_range(pixels: Pixels) -> list[Finding]:
    """Images must be bytes, or floats in 0..1."""
    if pixels.dtype == "uint8":
        return []
    if "float" in pixels.dtype and pixels.low >= -_SLACK and pixels.high <= 1 + _SLACK:
        return []
    signed = -1 - _SLACK <= pixels.low < -_SLACK and pixels.high <= 1 + _SLACK
    advice = (
        "leave out Normalize(0.5, 0.5), or undo it: (image + 1) / 2" if signed else "hand over the bytes as they are"
    )
    came = f"{pixels.dtype} in {pixels.low:.3g}..{pixels.high:.3g}" + (", which looks like -1..1" if signed else "")
    return [Finding(ERROR, "pixel range", 'batch["image"]', "uint8 in 0..255, or float in 0..1", came, advice)]


def check_constant(pixels: Pixels) -> list[Finding]:
    """Pictures of one colour teach nothing; black ones are most often a loader that failed in silence."""
    if not pixels.constant or (severity := _graded(pixels.constant, pixels.total, 0.0)) is None:
        return []
    black = sum(pixels.black)
    came = f"{len(pixels.constant)} of {pixels.total} of one colour, {black} of them black: {named(pixels.constant)}"
    advice = "open these files; a program that made the shards may have written what it could not read as black"
    return [Finding(severity, "blank images", "train_shards", "pictures", came, advice, tuple(pixels.constant))]


def check_inverted(masks: Masks) -> list[Finding]:
    """Masks from the data that are mostly white say, most likely, what to keep."""
    own = masks.own
    coverage, border = masks.coverage[own].tolist(), masks.border[own].tolist()
    if len(coverage) < 4:
        return []
    sure = look_inverted(coverage)
    mean, edge = sum(coverage) / len(coverage), sum(border) / len(border)
    if not sure and not (mean > 0.6 and edge > 0.8):
        return []
    came = f"{len(coverage)} masks from the data are {mean:.0%} white, and {edge:.0%} along the border"
    advice = "if they mark what to keep, set `inverted: true` of the source in data.masks.sources"
    expected = "white where to inpaint"
    return [Finding(ERROR if sure else WARNING, "inverted masks", "data.masks.sources", expected, came, advice)]


def check_painted(masks: Masks) -> list[Finding]:
    """A mask generator that paints nearly everything leaves nothing to inpaint from."""
    painted = masks.coverage[~masks.own]
    if not len(painted) or painted.mean() <= 0.9:
        return []
    came = f"{painted.mean():.0%} of the picture on average"
    return [Finding(WARNING, "masks too large", "data.mask_generator", "up to 90 %", came, "paint less")]


def check_empty(masks: Masks) -> list[Finding]:
    """An empty mask has no hole to learn from, and a full one no surroundings."""
    found = []
    for what, hits in (("empty", masks.coverage == 0), ("full", masks.coverage == 1)):
        keys = [key for key, hit in zip(masks.keys, hits.tolist(), strict=True) if hit]
        if what == "full" and check_inverted(masks):
            continue  # an inverted mask of what the crop has left out
        if severity := _graded(keys, len(masks.keys)):
            own = int((hits & masks.own).sum())
            came = f"{len(keys)} of {len(masks.keys)} {what}, {own} of them from the data: {named(keys)}"
            where = "data.masks.sources" if own else "data.mask_generator"
            advice = "look at these masks: a model learns nothing about filling in from them"
            if what == "empty":
                mend = "open these mask files: white is what is inpainted; "
                mend += "a larger data.decoder.min_scale misses fewer"
                advice = mend if own else "set its sizes"
            expected = "a hole and something around it"
            found.append(Finding(severity, f"{what} masks", where, expected, came, advice, tuple(keys)))
    return found


def check_lossy(stored: StoredSamples) -> list[Finding]:
    """Masks in JPEG have noise along their edges; soft masks are cut above one half."""
    found = []
    if stored.jpeg_masks:
        came = f"{len(stored.jpeg_masks)} of {stored.total} in JPEG, {stored.jpeg_grey:.1%} of their pixels grey: "
        advice = "write masks as mask.png; they are cut above one half here, so that their edges move a little"
        rest = (named(stored.jpeg_masks), tuple(stored.jpeg_masks))
        found.append(Finding(WARNING, "JPEG masks", "mask.jpg", "lossless masks", came + rest[0], advice, rest[1]))
    if _graded(stored.soft_masks, stored.total) is not None:
        came = f"{len(stored.soft_masks)} of {stored.total} with much grey: {named(stored.soft_masks)}"
        advice = "cut them where you want the edge; here it is above one half"
        found.append(
            Finding(WARNING, "soft masks", "mask.png", "black and white", came, advice, tuple(stored.soft_masks))
        )
    return found


def check_duplicates(stored: StoredSamples, blank: Sequence[str] = ()) -> list[Finding]:
    """The same picture under several names is trained on more often than others, and may be in validation too.

    Blank ones are left to `check_constant`.
    """
    groups = [group for group in stored.duplicates if not set(group) & set(blank)]
    keys = [key for group in groups for key in group]
    spare = [key for group in groups for key in group[1:]]
    severity = _graded(spare, stored.total, 0.0) if spare else None
    if severity is None:
        return []
    first = " = ".join(groups[0][:_SHOWN])
    came = f"{len(spare)} of {stored.total} files seen before under another name: {first}"
    advice = "remove them, with validation's among them, before make_shards"
    return [Finding(severity, "duplicate samples", "train_shards", "each picture once", came, advice, tuple(keys))]


def check_sizes(sizes: Sizes) -> list[Finding]:
    """Sides must be multiples of the VAE's ratio, and on the latent grid of the denoiser's."""
    found = []
    for height, width in sizes.seen:
        came, step = f"{height} x {width}", sizes.ratio * sizes.factor
        near = [max(step, round(side / step) * step) for side in (height, width)]
        advice = f"set data.image_size (or bucket_step) to multiples of {step}, such as {near[0]} x {near[1]}"
        if height % sizes.ratio or width % sizes.ratio:
            came += f"; {height % sizes.ratio} rows and {width % sizes.ratio} columns of each picture are cut off"
            expected = f"sides that are multiples of the VAE's ratio, {sizes.ratio}"
            found.append(Finding(ERROR, "wrong ratio", "data.image_size", expected, came, advice))
        elif height % step or width % step:
            came += f", {height // sizes.ratio} x {width // sizes.ratio} latents"
            expected = f"latent sides that are multiples of {sizes.factor}, by which the denoiser shrinks them"
            found.append(Finding(WARNING, "wrong ratio", "data.image_size", expected, came, advice))
    return found


def check_captions(captions: Captions) -> list[Finding]:
    """Half without words, or most with the same, is seldom meant; without a text encoder it does not matter."""
    if not captions.used:
        return []
    found, where = [], "data.decoder.caption_key"
    if captions.empty > captions.total / 2:
        came = f"{captions.empty} of {captions.total} are empty"
        advice = "look for NAME.txt, or name the key of NAME.json; empty ones on purpose are model.caption_dropout's"
        found.append(Finding(WARNING, "empty captions", where, "captions, since the model reads them", came, advice))
    if captions.total > 1 and captions.commonest > captions.total / 2:
        came = f"{captions.commonest} of {captions.total} say {captions.text[:60]!r}"
        found.append(Finding(WARNING, "equal captions", where, "captions that differ", came, "look at their source"))
    return found


def check_notes(notes: dict[str, list[str]], count: int) -> list[Finding]:
    """What the loader had to do: leave out, enlarge, take a first frame."""
    rules = [
        ("bad", 0.0, "bad samples", "mend or remove them; a run writes all to quarantine.jsonl"),
        ("upscaled", 0.1, "small images", "set a smaller data.image_size, or upscale: false to refuse them"),
        ("animated", 0.0, "animated images", "their first frame is taken; remove them if that is not meant"),
        ("bad_profile", 0.0, "colour profiles that cannot be used", "their colours are taken for sRGB; save them anew"),
    ]
    found = []
    for kind, few, title, advice in rules:
        texts = notes.get(kind, [])
        if len(texts) > few * count:
            came = f"{len(texts)} {kind}, among {count} samples: {named(texts)}"
            keys = () if kind == "bad" else tuple(texts)
            found.append(Finding(WARNING, title, "train_shards", "none, or few", came, advice, keys))
    return found


_APART = 5.0  # of 255: what a second JPEG compression does stays below, a shift by a pixel mostly above
_SAME = 0.5
_PAIRS = {  # what is expected, and what to do
    "misaligned pairs": (
        "image and target alike outside of the mask",
        "look whether the target is shifted, turned, of other colours, or the mask too small: the model learns it all",
    ),
    "pairs without their mask": (
        "a mask of what is to change, NAME.mask.png",
        "without it a random mask is painted, and the model learns to change what lies outside of it as well",
    ),
    "pairs with nothing to change": (
        "another picture inside of the mask",
        "look whether the target is a copy of the image, or the mask of another pair",
    ),
}


def check_pairs(pairs: Pairs) -> list[Finding]:
    """What lies outside of the mask is the same in both, and what is inside is not."""
    hits, apart = pairs.outside > _APART, pairs.outside
    same = pairs.own & (pairs.inside < _SAME)
    found = []
    for (title, (expected, advice)), hit, place, differ in zip(
        _PAIRS.items(),
        (pairs.own & hits, ~pairs.own & hits, same),
        ("outside of the mask", "outside of the painted mask", "inside of the mask"),
        (apart, apart, pairs.inside),
        strict=True,
    ):
        if keys := [key for key, chosen in zip(pairs.keys, hit.tolist(), strict=True) if chosen]:
            mean = differ[hit].mean()
            came = f"{len(keys)} of {len(pairs.keys)} pairs differ {place} by {mean:.1f} of 255 on average"
            of = tuple(dict.fromkeys(keys))
            found.append(Finding(WARNING, title, "target", expected, f"{came}: {named(keys)}", advice, of))
    return found


_STD = ((0.4, 2.5), (0.6, 1.7))  # outside the first is an error, outside the second a warning
_MEAN = (2.0, 1.0)
_PSNR = (15.0, 20.0)  # dB; a good VAE has 25 and more
_LEAK = 0.05


def check_finite(latents: Latents) -> list[Finding]:
    """NaN and infinity, of a VAE whose activations do not fit its dtype."""
    if not latents.lost:
        return []
    came = f"NaN or infinity in {len(latents.lost)} of {latents.total} in {latents.dtype}: {named(latents.lost)}"
    advice = "load the VAE in bfloat16 or float32: dtype of model.encoder.vae"
    if latents.dtype != "float16":
        advice = "look for NaN in the VAE's weights and in the pictures"
    title = "overflow in the VAE" if latents.dtype == "float16" else "NaN from the VAE"
    where, expected = "model.encoder.vae", "finite latents and decoded pictures"
    return [Finding(ERROR, title, where, expected, came, advice, tuple(latents.lost))]


def check_latents(latents: Latents) -> list[Finding]:
    """The denoiser's space has a mean of about 0 and a std of about 1; a VAE gives back about what it got."""
    if not latents.psnr:
        return []
    found, where = [], "model.encoder.vae"
    if not _STD[1][0] <= latents.std <= _STD[1][1] or abs(latents.mean) > _MEAN[1]:
        bad = not _STD[0][0] <= latents.std <= _STD[0][1] or abs(latents.mean) > _MEAN[0]
        came = f"mean {latents.mean:.2f}, std {latents.std:.2f}"
        advice = "take the base model's own VAE, and see scaling_factor or latents_mean and latents_std in its config"
        severity = ERROR if bad else WARNING
        found.append(Finding(severity, "latents off scale", where, "mean about 0, std about 1", came, advice))
    mean = sum(latents.psnr) / len(latents.psnr)
    if mean < _PSNR[1]:
        came = f"{mean:.1f} dB on average, {min(latents.psnr):.1f} at worst"
        advice = "look at the sheet: noise or wrong colours say wrong or untrained weights, blur too small pictures"
        severity = ERROR if mean < _PSNR[0] else WARNING
        found.append(Finding(severity, "bad VAE round trip", where, f"a PSNR of {_PSNR[1]:.0f} dB", came, advice))
    return found


def check_grid(grid: dict[str, Grid], reduce: str) -> list[Finding]:
    """The config's reduction should not forget much of the masks."""
    mine = grid.get(reduce)
    if mine is None or mine.leak <= _LEAK:
        return []
    came = f"{mine.leak:.1%} of the masked pixels are in latents that the reduced mask keeps"
    advice = "set reduce: max, which forgets nothing, or paint wider masks"
    return [Finding(WARNING, "masks leak", "model.layout.reduce", f"at most {_LEAK:.0%}", came, advice)]


def check_loss(loss: float) -> list[Finding]:
    """A first step must be finite."""
    if math.isfinite(loss):
        return []
    return [Finding(ERROR, "loss", "model", "a finite loss", str(loss), "look at the denoiser's dtype and weights")]
