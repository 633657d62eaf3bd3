"""What makes a generator: a YAML file, by path or by the name of one that is shipped in this folder.

tiny              64 px, in pixels; minutes on two cores
latent            256 px, in the latents of an AutoencoderKL, which is given by --autoencoder
stable_diffusion  512 px, a Stable Diffusion checkpoint tuned by text, which is given by --checkpoint (RoentGen's way)
"""

from __future__ import annotations

import importlib.util
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cxrlt_ray import config
from cxrlt_ray.errors import UsageError

FOLDER = "generation"
DDIM, DPM = "ddim", "dpm"
SOLVERS = (DDIM, DPM)  # by which images are drawn
OWN = "own"  # of `text`: the checkpoint's own encoder

Positive = Annotated[int, Field(ge=1)]


class GeneratorConfig(config.Config):
    """Everything that makes a generator, besides the images it learns.

    condition: the findings as a vector, or as text by the encoder `text` of a Stable Diffusion folder `checkpoint`,
    whose network and autoencoder are taken. autoencoder: a folder (or its .safetensors file) of an AutoencoderKL; None:
    the model works on pixels. patch: the edge of the squares of pixels that the network takes as one place with patch x
    patch channels, many times faster at little cost (Luhman & Luhman 2022). channels: of each level, every next one at
    half the edge. attention: levels, from 0, with self-attention. drop_condition: the share of images whose condition
    is hidden in training, for guidance (Ho & Salimans 2022). noise: diffusers' name of the schedule of betas.
    prediction: what the network predicts. ema_decay: of the weights that sample, with a warm-up.
    """

    resolution: Annotated[int, Field(ge=16, le=1024)]
    condition: Literal["findings", "text"] = "findings"
    autoencoder: str | None = None
    patch: Positive = 1
    checkpoint: str | None = None
    text: str = OWN
    # the network; a checkpoint has its own
    channels: Annotated[tuple[Positive, ...], Field(min_length=1)] = (32, 64, 128)
    layers: Positive = 1
    attention: tuple[Annotated[int, Field(ge=0)], ...] = ()
    groups: Positive = 8  # of group norm
    # the noise
    noise: Literal["squaredcos_cap_v2", "scaled_linear", "linear"] = "squaredcos_cap_v2"
    prediction: Literal["epsilon", "v_prediction"] = "v_prediction"
    noise_steps: Annotated[int, Field(ge=2)] = 1000
    # training
    steps: Positive
    batch_size: Positive = 32
    lr: Annotated[float, Field(gt=0)] = 2e-4
    warmup: Annotated[int, Field(ge=0)] = 100  # steps
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    drop_condition: Annotated[float, Field(ge=0, lt=1)] = 0.1
    augment: Annotated[float, Field(ge=0, le=1)] = 0.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"

    @model_validator(mode="after")
    def _fits(self) -> GeneratorConfig:
        if self.condition == "findings" and (self.checkpoint or self.text != OWN):
            raise ValueError("checkpoint and text are of `condition: text`: leave them out")
        if self.checkpoint and self.autoencoder:
            raise ValueError("a checkpoint has its own autoencoder: leave autoencoder out")
        if self.patch > 1 and (self.autoencoder or self.checkpoint):
            raise ValueError(f"patch {self.patch} is of a network that works on pixels: with latents it is 1")
        if wrong := [width for width in self.channels if width % self.groups]:
            raise ValueError(f"channels {wrong[0]} cannot be divided into {self.groups} groups")
        if wrong := [level for level in self.attention if level >= len(self.channels)]:
            raise ValueError(f"attention {wrong[0]}: the levels are 0 to {len(self.channels) - 1}")
        if self.autoencoder is None and not self.checkpoint and self.resolution % (self.patch * self.shrinkage):
            raise ValueError(
                f"resolution {self.resolution} cannot be cut into patches of {self.patch} and halved "
                f"{len(self.channels) - 1} times: take a multiple of {self.patch * self.shrinkage}"
            )
        return self

    @property
    def shrinkage(self) -> int:
        """How many times smaller the network's coarsest level is than its input."""
        return 2 ** (len(self.channels) - 1)


def check_installed() -> None:
    """Raise UsageError where diffusers is not installed; it is not imported."""
    if importlib.util.find_spec("diffusers") is None:
        raise UsageError("generated images need diffusers: pip install 'cxrlt-ray[generate]'.")


def load_config(name: str) -> GeneratorConfig:
    """The configuration `name`: a path, or one of those shipped. Raises UsageError naming file, key and value."""
    path = config.find(FOLDER, name)
    return config.validate(GeneratorConfig, config.read_yaml(path), path)
