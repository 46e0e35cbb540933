"""Flux.1."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from inpaint_module.base_models.controlnet import (
    ControlNetCondition,
    ControlNetKind,
    PackedKeptMaskCondition,
    layers_of,
)
from inpaint_module.base_models.denoiser_call import ControlNetInputs, DenoiserCall, matched
from inpaint_module.base_models.family import Family, TextFolder, TextOptions, Way, without_clip
from inpaint_module.base_models.layout import (
    DenoiserLayout,
    PackedNoisyLayout,
    PackedPlainLayout,
    ReferenceLayout,
    pack,
    unpack,
)
from inpaint_module.base_models.text import FrozenTextEncoder, TextConditioning
from inpaint_module.batch import Batch
from inpaint_module.encoder import InpaintEncoder


class FluxFillLayout(DenoiserLayout):
    """Flux.1 Fill, 384 channels a token: noisy 64, masked image 64, all 8 x 8 mask pixels of its 2 x 2 cells 256.

    Matches `FluxFillPipeline` of diffusers. No mask pixel is lost, so there is no reduction to choose.
    """

    RATIO = 8
    multiple = 2

    def __init__(self) -> None:
        super().__init__()
        self.reduce = "space-to-depth"

    def assemble(self, noisy: Tensor, cells: Tensor, masked: Tensor) -> Tensor:
        """To (B, h/2 * w/2, 4 (2 C + 64)); `cells` are (B, 64, h, w)."""
        return pack(torch.cat([noisy, masked, cells], dim=1))

    def in_channels(self, channels: int) -> int:
        """4 (2 C + 64)."""
        return 4 * (2 * channels + self.RATIO**2)

    def check(self, encoder: InpaintEncoder) -> None:
        """As `Layout.check`; 384 channels need a VAE of ratio 8 too."""
        super().check(encoder)
        if encoder.vae.ratio != self.RATIO:
            raise ValueError(f"FluxFillLayout expects a VAE of ratio {self.RATIO}, got ratio {encoder.vae.ratio}")


class FluxControlNetLayout(ControlNetCondition):
    """Condition of a Flux ControlNet in diffusers, 64 channels a token: the masked image alone.

    Matches `FluxControlNetInpaintPipeline` of diffusers when its `control_image` is the image with a grey hole. That
    pipeline also packs the mask, but for blending and callbacks: its ControlNet never gets it.
    """

    multiple = 2
    call_with = "control_image=torch.where(mask > 0.5, 0.0, image * 2 - 1), a tensor (B, 3, H, W)"

    def assemble(self, cells: Tensor, masked: Tensor) -> Tensor:
        """To (B, h/2 * w/2, 4 C)."""
        return pack(masked)

    def in_channels(self, channels: int) -> int:
        """4 C."""
        return 4 * channels


class FluxInpaintControlNetLayout(PackedKeptMaskCondition):
    """Condition of alimama's Flux inpaint ControlNet, 68 channels a token: masked image, mask (1 = keep), hole black.

    Matches `FluxControlNetInpaintingPipeline` of alimama-creative/FLUX-Controlnet-Inpainting, which does not blend;
    diffusers has no Flux ControlNet with room for a mask.
    """

    call_with = (
        "control_image=image * 2 - 1, control_mask=mask, tensors (B, 3, H, W) and (B, 1, H, W), height and width"
    )


class FluxCall(DenoiserCall):
    """Call FluxTransformer2DModel: time in 0..1, the place of every token, packed tokens in and out."""

    even_steps = True

    def __call__(
        self, denoiser: Any, inputs: Tensor, timesteps: Tensor, conditions: Mapping[str, Any], size: tuple[int, int]
    ) -> Tensor:
        """See `DenoiserCall`."""
        tokens = denoiser(**_named(denoiser, inputs, timesteps, conditions, size)).sample
        return unpack(tokens[:, : size[0] * size[1] // 4], *size)

    def residuals(self, controlnet: Any, given: ControlNetInputs) -> dict[str, Any]:
        """See `DenoiserCall.residuals`; guidance goes to a ControlNet that knows it."""
        known = {**given.conditions, "controlnet_cond": given.condition}
        if not controlnet.config.guidance_embeds:
            known.pop("guidance", None)
        said = controlnet(
            conditioning_scale=given.scale, **_named(controlnet, given.inputs, given.timesteps, known, given.size)
        )
        names = ("controlnet_block_samples", "controlnet_single_block_samples")
        return {name: getattr(said, name) for name in names}


def _named(
    model: Any, inputs: Tensor, timesteps: Tensor, conditions: Mapping[str, Any], size: tuple[int, int]
) -> dict[str, Any]:
    """The arguments that a transformer and its ControlNet share, by name."""
    places = token_places(*size, inputs.device)
    if (pictures := inputs.shape[1] // len(places)) > 1:  # a reference picture: the same places, and a 1
        places = torch.cat([places + torch.tensor([n > 0, 0, 0], device=places.device) for n in range(pictures)])
    more = matched({**conditions, "img_ids": places}, model.dtype)
    # the pipeline, too, rounds the time to the model's precision before the division
    time = timesteps.to(model.dtype).expand(len(inputs)) / 1000
    return {"hidden_states": inputs.to(model.dtype), "timestep": time, **more}


def token_places(height: int, width: int, device: torch.device) -> Tensor:
    """For latents of h = `height`, w = `width`: (h/2 * w/2, 3) of 0, row and column of each 2 x 2 token."""
    rows, columns = torch.arange(height // 2, device=device), torch.arange(width // 2, device=device)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1).float()


class FluxText(TextConditioning):
    """Flux.1: the tokens of a T5, the pooled text of a CLIP, and the guidance of a distilled model.

    Args:
        encoder: CLIPTextModel and its tokenizer.
        encoder_2: T5EncoderModel and its tokenizer, 512 tokens in the pipeline.
        guidance: for a transformer with `guidance_embeds`; 30 is what `FluxFillPipeline` says. None for one
            without.
    """

    def __init__(self, encoder: FrozenTextEncoder, encoder_2: FrozenTextEncoder, *, guidance: float | None = 30.0):
        self.encoders = (encoder, encoder_2)
        self.encoder, self.encoder_2, self.guidance = encoder, encoder_2, guidance

    def read(self, captions: list[str]) -> dict[str, Tensor]:
        """See `TextConditioning.read`."""
        return {
            "encoder_hidden_states": self.encoder_2(captions)[0],
            "pooled_projections": self.encoder(captions).pooler_output,
        }

    def arrange(self, embeddings: dict[str, Tensor], batch: Batch) -> dict[str, Any]:
        """See `TextConditioning.arrange`."""
        tokens = embeddings["encoder_hidden_states"]
        found: dict[str, Any] = {**embeddings, "txt_ids": tokens.new_zeros(tokens.shape[1], 3)}
        if self.guidance is not None:
            found["guidance"] = tokens.new_full((len(tokens),), self.guidance, dtype=torch.float32)
        return found


def _text(folder: TextFolder, options: TextOptions) -> FluxText:
    without_clip("Flux", options)
    guidance = options.guidance if folder.transformer().get("guidance_embeds") else None
    return FluxText(folder.encoder(1), folder.encoder(2, options.length or 512), guidance=guidance)


@cache
def _alimama() -> Any:
    """Alimama's class, of the names of weights and the config of controlnet_flux.py there: room for the mask too."""
    from diffusers import FluxControlNetModel as Plain
    from diffusers.configuration_utils import register_to_config

    class FluxControlNetModel(Plain):
        @register_to_config
        def __init__(
            self,
            patch_size: int = 1,
            in_channels: int = 64,
            num_layers: int = 19,
            num_single_layers: int = 38,
            attention_head_dim: int = 128,
            num_attention_heads: int = 24,
            joint_attention_dim: int = 4096,
            pooled_projection_dim: int = 768,
            guidance_embeds: bool = False,
            axes_dims_rope: tuple[int, ...] = (16, 56, 56),
            extra_condition_channels: int = 4,
        ):
            more = ("extra_condition_channels", "_use_default_values")
            known = {name: value for name, value in self.config.items() if name not in more}
            Plain.__init__.__wrapped__(self, **known)  # past the registering, which adds what their config has not
            self.controlnet_x_embedder = nn.Linear(in_channels + extra_condition_channels, self.inner_dim)
            nn.init.zeros_(self.controlnet_x_embedder.weight)
            nn.init.zeros_(self.controlnet_x_embedder.bias)

    return FluxControlNetModel


def _diffusers() -> Any:
    from diffusers import FluxControlNetModel

    return FluxControlNetModel


def _new_controlnet(transformer: Any, layers: int | None, model: Any = _diffusers) -> nn.Module:
    from diffusers.configuration_utils import FrozenDict

    config = transformer.config
    count = layers_of(layers, 4, config.num_layers)
    made = model().from_transformer(
        transformer,
        num_layers=count,
        num_single_layers=min(count * 5 // 2, config.num_single_layers),
        attention_head_dim=config.attention_head_dim,
        num_attention_heads=config.num_attention_heads,
    )
    # the transformer's, which no ControlNet's config has
    made._internal_dict = FrozenDict({name: value for name, value in made.config.items() if name != "out_channels"})
    return made


_CONTROLNET = ControlNetKind("FluxControlNetModel", _new_controlnet, FluxControlNetLayout, "controlnet_x_embedder")
_TOLD_THE_MASK = ControlNetKind(
    "FluxControlNetModel",
    partial(_new_controlnet, model=_alimama),
    FluxInpaintControlNetLayout,
    "controlnet_x_embedder",
    model=_alimama,
)
_ALIMAMA = Way(
    PackedNoisyLayout,
    "FluxControlNetInpaintingPipeline",
    guidance=3.5,
    controlnet=_TOLD_THE_MASK,
    channels=64 + 4,
    home="alimama-creative/FLUX-Controlnet-Inpainting",
)
FLUX = Family(
    name="Flux.1",
    pipelines=("Flux",),
    text=FluxText,
    read_text=_text,
    call=FluxCall(),
    ways={
        "channels": Way(FluxFillLayout, "FluxFillPipeline"),
        "plain": Way(PackedPlainLayout, "FluxInpaintPipeline", guidance=3.5),
        "edit": Way(ReferenceLayout, "FluxKontextInpaintPipeline", guidance=3.5),
        "controlnet": Way(
            PackedPlainLayout,
            "FluxControlNetInpaintPipeline",
            guidance=3.5,
            controlnet=_CONTROLNET,
            channels=64,
            others=(_ALIMAMA,),
        ),
    },
)
