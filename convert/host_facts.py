"""Every host that is judged, and what A1111 1.10 does: read in its code, and seen in runs of its loader."""

from __future__ import annotations

from .host_comfyui import COMFYUI, FORGE
from .host_diffusers import DIFFUSERS
from .host_model import Caution, Fact, Host
from .host_words import (
    CLIPS,
    DOTTED,
    FLAT_CLIP,
    HIDDEN,
    INCOMPLETE,
    OWN,
    POSITIONAL,
    SCALAR,
    STRANGE_PREFIX,
    UNETS,
    ZERO_MODULES,
)

A1111 = Host(
    "a1111",
    "A1111",
    families=UNETS,
    facts=(
        POSITIONAL,
        Fact(False, ZERO_MODULES, prefixes=DOTTED),
        Fact(False, "it rejects files with OFT of version 2 (oft_R)", marks=("oft_v2",), fatal=True),
        Fact(False, "it rejects files with whole weights", marks=("value",), fatal=True),
        Fact(False, "a norm without its bias makes it reject the whole file", marks=("norm-alone",), fatal=True),
        Fact(False, "a bias without its weight makes it reject the whole file", marks=("bias-alone",), fatal=True),
        Fact(False, "it drops the bias beside a layer of another kind", marks=("bias-beside",)),
        Fact(True, prefix=("oft_unet",), namings=OWN),
        Fact(False, "after oft_unet_ it knows only the original names", prefix=("oft_unet",)),
        Fact(False, "it does not know kohya's OFT of the text encoder", prefixes=("oft",)),
        Fact(True, prefix=("lora_unet",), namings=OWN),
        Fact(
            False,
            "it does not know SDXL's add_embedding",
            prefix=("lora_unet",),
            modules=("add_embedding.linear_1", "add_embedding.linear_2"),
        ),
        Fact(
            False,
            "it takes SDXL's first upsampler for another module",
            prefix=("lora_unet",),
            families=("sdxl",),
            modules=("up_blocks.0.upsamplers.0.conv",),
        ),
        Fact(True, prefix=("lora_unet",)),
        Fact(False, "it does not know lycoris_ in front of a name", prefix=("lycoris",)),
        Fact(False, FLAT_CLIP, namings=("flat-clip",)),
        Fact(False, "it knows SD 2's text encoder only as lora_te_", prefix=("lora_te1",), families=("sd21",)),
        Fact(False, "it does not know the refiner's text encoder", components=CLIPS, families=("sdxl-refiner",)),
        Fact(False, "it does not read the text encoder's projection", modules=("text_projection",)),
        Fact(True, prefix=("lora_te", "lora_te1", "lora_te2"), components=CLIPS),
        Fact(False, STRANGE_PREFIX),
    ),
    cautions=(
        SCALAR,
        Caution(
            "output-magnitude",
            "but not as trained: it takes DoRA's magnitudes, which lie along the output, for ones along the input",
        ),
        Caution("untagged-sdxl", HIDDEN),
        Caution("incomplete", f"it rejects the whole file: {INCOMPLETE}", loads=False),
    ),
)
HOSTS: tuple[Host, ...] = (COMFYUI, A1111, FORGE, DIFFUSERS)
