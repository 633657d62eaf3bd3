"""The diffusion model: diffusers' UNet2DConditionModel, in pixels or in the latents of an AutoencoderKL.

A condition is the vector of findings, which `class_embed_type="simple_projection"` adds to the embedding of time, or
the findings in words, to whose tokens a Stable Diffusion network attends (RoentGen, Chambon et al. 2022). Guidance is
classifier-free (Ho & Salimans 2022, eq. 6). Imported late: it imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch

from cxrlt_ray.errors import UsageError
from cxrlt_ray.generation.conditions import encoded, prompt
from cxrlt_ray.generation.config import DDIM, DPM, SOLVERS, GeneratorConfig, check_installed

if TYPE_CHECKING:
    from cxrlt_ray.text.encoders import TextEncoder

UNET, AUTOENCODER, TEXT, TOKENIZER = "unet", "vae", "text_encoder", "tokenizer"  # folders, as Stable Diffusion's
BETAS = {"scaled_linear": (0.00085, 0.012), "linear": (1e-4, 0.02)}  # the ends, as Stable Diffusion and DDPM
DECODED = 8  # images that an autoencoder decodes at a time


def require_diffusers() -> ModuleType:
    """The package diffusers. Raises UsageError where it is not installed."""
    check_installed()
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    return diffusers


class Step(Protocol):
    """What a solver's step gives."""

    prev_sample: torch.Tensor


class Scheduler(Protocol):
    """A solver of diffusers."""

    timesteps: torch.Tensor

    def set_timesteps(self, num_inference_steps: int) -> None: ...
    def step(self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor) -> Step: ...


@dataclass(frozen=True)
class Condition:
    """What a network is told of B images: vectors float [B, C], or tokens float [B, L, E] with their mask [B, L]."""

    vectors: torch.Tensor | None = None
    tokens: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def hidden(self, rows: torch.Tensor, null: Condition) -> Condition:
        """The same with `null`, of one image, in the place of `rows`, bool [B]."""

        def joined(own: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
            if own is None or other is None:
                return None
            return torch.where(rows.view(-1, *[1] * (own.ndim - 1)), other.to(own.dtype), own)

        return Condition(*(joined(getattr(self, name), getattr(null, name)) for name in Condition.__annotations__))


@dataclass
class TextConditions:
    """Texts as a network's tokens, by an encoder of cxrlt_ray/text; each text is encoded once, by itself.

    length: tokens of each text, padded. masked: whether padding is hidden from the network; Stable Diffusion's own
    encoder shows it, as its network was trained so.
    """

    encoder: TextEncoder
    length: int
    masked: bool
    known: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def __call__(self, texts: Sequence[str]) -> Condition:
        """Tokens [B, L, E] and mask [B, L] of B texts."""
        for text in dict.fromkeys(texts):
            if text not in self.known:
                self.known[text] = self._encoded(text)
        tokens, masks = zip(*(self.known[text] for text in texts), strict=True)
        return Condition(tokens=torch.stack(tokens), mask=torch.stack(masks) if self.masked else None)

    def _encoded(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        from cxrlt_ray.text.encoders import Tokens

        encoder = self.encoder
        own = encoder.tokenize([text])
        filler = encoder.tokenizer.pad_token_id
        ids = torch.full((1, self.length), 0 if filler is None else int(filler), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        count = min(self.length, own.ids.shape[1])
        ids[:, :count], mask[:, :count] = own.ids[:, :count], own.mask[:, :count]
        with torch.inference_mode():
            hidden, _ = encoder.tokens(Tokens(ids, mask if self.masked else torch.ones_like(mask)))
        return hidden[0].clone(), mask[0].to(hidden.device)


@dataclass
class Diffusion:
    """A network with all that stands between it and images uint8 [B, H, W]."""

    config: GeneratorConfig
    findings: tuple[str, ...]
    unet: Any  # diffusers names no types of its classes
    autoencoder: Any = None  # or None
    text: TextConditions | None = None
    _null: Condition | None = None

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.unet.parameters()).device

    def to(self, device: torch.device) -> Diffusion:
        """The same on a device."""
        self.unet.to(device)
        if self.autoencoder is not None:
            self.autoencoder.to(device)
        if self.text is not None:
            self.text.encoder.to(device)
        return self

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what the network denoises."""
        edge = self.config.resolution // self.config.patch
        if self.autoencoder is not None:
            edge //= 2 ** (len(self.autoencoder.config.block_out_channels) - 1)
        return int(self.unet.config.in_channels), edge, edge

    def latents(self, images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """Float [B, C, h, w] of images uint8 [B, H, W]: pixels from -1 to 1 in patches, or drawn from the posterior."""
        pixels = (images.float() / 127.5 - 1).unsqueeze(1)
        if self.autoencoder is None:
            return torch.nn.functional.pixel_unshuffle(pixels, self.config.patch)
        pixels = pixels.expand(-1, int(self.autoencoder.config.in_channels), -1, -1)
        with torch.no_grad():
            posterior = self.autoencoder.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=random).to(posterior.mean)
        return (posterior.mean + posterior.std * noise) * float(self.autoencoder.config.scaling_factor)

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Images uint8 [B, H, W] of latents [B, C, h, w]."""
        if self.autoencoder is not None:
            scaled = latents / float(self.autoencoder.config.scaling_factor)
            parts = [self.autoencoder.decode(part).sample for part in scaled.split(DECODED)]
            gray = torch.cat(parts).float().mean(dim=1)
        else:
            gray = torch.nn.functional.pixel_shuffle(latents.float(), self.config.patch).squeeze(1)
        return ((gray + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def condition(self, vectors: np.ndarray) -> Condition:
        """What the network is told for conditions int8 [B, C], 1, 0 or -1 (open)."""
        if self.text is not None:
            return self.text([prompt(vector, self.findings) for vector in vectors])
        return Condition(vectors=torch.from_numpy(encoded(vectors)).to(self.device))

    @property
    def null(self) -> Condition:
        """The condition of one image that says nothing."""
        if self._null is None:
            nothing = np.full((1, len(self.findings)), -1, np.int8)
            self._null = self.text([""]) if self.text is not None else self.condition(nothing)
        return self._null

    def predict(self, noisy: torch.Tensor, times: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The network's output [B, C, h, w] for noisy latents at times int64 [B]."""
        output = self.unet(
            noisy,
            times,
            condition.tokens,
            class_labels=condition.vectors,
            encoder_attention_mask=condition.mask,
        ).sample
        return cast(torch.Tensor, output)

    def guided(self, noisy: torch.Tensor, times: torch.Tensor, condition: Condition, scale: float) -> torch.Tensor:
        """`predict` moved away from what it is without the condition: null + scale (own - null). scale 1: `predict`."""
        own = self.predict(noisy, times, condition)
        if scale == 1:
            return own
        every = torch.ones(len(noisy), dtype=torch.bool, device=noisy.device)
        null = self.predict(noisy, times, condition.hidden(every, self.null))
        return null + scale * (own - null)

    def save(self, folder: Path) -> None:
        """The weights as diffusers' and transformers' `save_pretrained` keep them."""
        self.unet.save_pretrained(folder / UNET, safe_serialization=True)
        if self.autoencoder is not None:
            self.autoencoder.save_pretrained(folder / AUTOENCODER, safe_serialization=True)
        if self.text is not None:
            self.text.encoder.model.save_pretrained(folder / TEXT, safe_serialization=True)
            self.text.encoder.tokenizer.save_pretrained(folder / TEXT)


def noise_options(config: GeneratorConfig) -> dict[str, float | int | str]:
    """The noise schedule, as diffusers' schedulers are given it."""
    options: dict[str, float | int | str] = {
        "num_train_timesteps": config.noise_steps,
        "beta_schedule": config.noise,
        "prediction_type": config.prediction,
    }
    if config.noise in BETAS:
        options["beta_start"], options["beta_end"] = BETAS[config.noise]
    return options


def solver(config: GeneratorConfig, name: str) -> Callable[[], Scheduler]:
    """A fresh solver at each call: DDIM (Song et al. 2021, eta 0) or DPM-Solver++ (Lu et al. 2022), both without noise.

    Pixels are kept within their range, latents have none. Raises UsageError for an unknown name.
    """
    diffusers = require_diffusers()
    in_pixels = config.autoencoder is None and config.checkpoint is None
    options = {**noise_options(config), "timestep_spacing": "trailing"}
    if name == DDIM:
        return lambda: diffusers.DDIMScheduler(**options, clip_sample=in_pixels)
    if name == DPM:
        return lambda: diffusers.DPMSolverMultistepScheduler(**options, thresholding=in_pixels)
    raise UsageError(f"--solver is {' or '.join(SOLVERS)}, not '{name}'.")
