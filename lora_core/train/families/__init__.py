"""The model families that can be trained, one small table each."""

from __future__ import annotations

from ...errors import BadConfig, WrongArchitecture
from .conditions import collate
from .flux import CHROMA, FLUX
from .flux2 import FLUX2_KLEIN
from .lumina2 import LUMINA2
from .model import Config, Encoder, Family, Input, Parts, Preview
from .pixart import PIXART
from .qwen_image import QWEN_IMAGE
from .sana import SANA
from .sd3 import SD3
from .stable_diffusion import SD15, SD21, SDXL
from .wan import WAN, WAN22
from .z_image import Z_IMAGE

__all__ = ["FAMILIES", "Config", "Encoder", "Family", "Input", "Parts", "Preview", "collate", "family_of", "known"]

FAMILIES: tuple[Family, ...] = (
    SD15,
    SD21,
    SDXL,
    SD3,
    FLUX,
    FLUX2_KLEIN,
    CHROMA,
    Z_IMAGE,
    QWEN_IMAGE,
    LUMINA2,
    SANA,
    PIXART,
    WAN,
    WAN22,
)


def known() -> str:
    """Return the families' names, for messages."""
    return ", ".join(family.name for family in FAMILIES)


def family_of(config: Config, asked: str | None = None) -> tuple[Family, str]:
    """Return a denoiser's family and architecture from its diffusers config; `asked` chooses among a family's sizes.

    Raises WrongArchitecture for a model that is not trained here, BadConfig for an asked id that is not the model's.
    """
    kind = config.get("_class_name", "")
    for family in (one for one in FAMILIES if one.denoiser == kind):
        found = family.recognize(config)
        if found is not None:
            return family, _asked(family, asked) if asked else found
    raise WrongArchitecture(f"the model is a {kind or 'model without a class name'}; this trainer knows {known()}")


def _asked(family: Family, asked: str) -> str:
    if asked in family.ids:
        return asked
    what = f"config: 'family' is {asked!r}, and the model is {family.name}"
    raise BadConfig(f"{what}; leave it out, or choose from {', '.join(family.ids)}", key="family")
