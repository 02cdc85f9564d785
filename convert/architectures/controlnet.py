"""What every ControlNet of the UNet families has beside the encoder that it copies."""

from __future__ import annotations

from ..model import Group, Row

# The names are also a UNet's, so that only prefixes which say "ControlNet" are here, and none at all (Control-LoRA).
CONTROLNET_PREFIXES = {
    "control": ("",),  # read, never written
    "diffusers": ("controlnet",),
    "peft": ("controlnet.base_model.model",),
}
HINT = Group(
    "input_hint_block",
    "controlnet_cond_embedding",
    (
        Row("0", "conv_in", (16, 3, 3, 3)),
        Row("2", "blocks.0", (16, 16, 3, 3)),
        Row("4", "blocks.1", (32, 16, 3, 3)),
        Row("6", "blocks.2", (32, 32, 3, 3)),
        Row("8", "blocks.3", (96, 32, 3, 3)),
        Row("10", "blocks.4", (96, 96, 3, 3)),
        Row("12", "blocks.5", (256, 96, 3, 3)),
        Row("14", "conv_out", (320, 256, 3, 3)),
    ),
)
ZERO_CONVOLUTION = (Row("0", "", ("width", "width", 1, 1)),)  # no name of its own in Diffusers
