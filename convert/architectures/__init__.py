"""Model families, one literal per file."""

from __future__ import annotations

from functools import lru_cache

from ..model import Architecture
from .ace_step import ACE_STEP
from .anima import ANIMA
from .auraflow import AURAFLOW
from .bria_fibo import BRIA_FIBO
from .chroma import CHROMA
from .cogvideox import COGVIDEOX
from .cogview3plus import COGVIEW3PLUS
from .cogview4 import COGVIEW4
from .cosmos_predict2 import COSMOS_PREDICT2
from .ernie_image import ERNIE_IMAGE
from .ernie_image_8b import ERNIE_IMAGE_8B
from .flux import FLUX
from .flux2_dev import FLUX2_DEV
from .flux2_klein4b import FLUX2_KLEIN4B
from .flux2_klein9b import FLUX2_KLEIN9B
from .flux3 import FLUX3
from .framepack import FRAMEPACK
from .glm_image import GLM_IMAGE
from .glm_image_7b import GLM_IMAGE_7B
from .hidream import HIDREAM
from .hunyuan_image21 import HUNYUAN_IMAGE21
from .hunyuan_video import HUNYUAN_VIDEO
from .hunyuan_video15 import HUNYUAN_VIDEO15
from .hunyuandit import HUNYUANDIT
from .ideogram4 import IDEOGRAM4
from .kandinsky5 import KANDINSKY5
from .krea2 import KREA2
from .longcat_image import LONGCAT_IMAGE
from .ltx2 import LTX2
from .ltx_video import LTX_VIDEO
from .lumina2 import LUMINA2
from .minimax_h3 import MINIMAX_H3
from .mochi import MOCHI
from .omnigen2 import OMNIGEN2
from .ovis_image import OVIS_IMAGE
from .pixart_sigma import PIXART_SIGMA
from .prx import PRX
from .qwen_image import QWEN_IMAGE
from .qwen_image21 import QWEN_IMAGE21
from .sana import SANA
from .sd3_medium import SD3_MEDIUM
from .sd15 import SD15
from .sd21 import SD21
from .sd35_large import SD35_LARGE
from .sd35_medium import SD35_MEDIUM
from .sdxl import SDXL
from .sdxl_controlnet import SDXL_CONTROLNET
from .sdxl_refiner import SDXL_REFINER
from .skyreels_v2 import SKYREELS_V2
from .stable_cascade_c import STABLE_CASCADE_C
from .wan21_1_3b_t2v import WAN21_1_3B_T2V
from .wan21_14b_i2v import WAN21_14B_I2V
from .wan21_14b_t2v import WAN21_14B_T2V
from .wan22_5b import WAN22_5B
from .z_image import Z_IMAGE

ARCHITECTURES: tuple[Architecture, ...] = (
    SD15,
    SD21,
    SDXL,
    SDXL_REFINER,
    FLUX,
    FLUX2_DEV,
    FLUX2_KLEIN4B,
    FLUX2_KLEIN9B,
    CHROMA,
    SD3_MEDIUM,
    SD35_MEDIUM,
    SD35_LARGE,
    Z_IMAGE,
    QWEN_IMAGE,
    QWEN_IMAGE21,
    WAN21_14B_T2V,
    WAN21_14B_I2V,
    WAN21_1_3B_T2V,
    WAN22_5B,
    HUNYUAN_VIDEO,
    HUNYUAN_VIDEO15,
    HUNYUAN_IMAGE21,
    FRAMEPACK,
    LTX_VIDEO,
    LTX2,
    ANIMA,
    LUMINA2,
    ACE_STEP,
    AURAFLOW,
    BRIA_FIBO,
    COGVIDEOX,
    COGVIEW3PLUS,
    COGVIEW4,
    COSMOS_PREDICT2,
    ERNIE_IMAGE,
    ERNIE_IMAGE_8B,
    FLUX3,
    GLM_IMAGE,
    GLM_IMAGE_7B,
    HIDREAM,
    HUNYUANDIT,
    IDEOGRAM4,
    KANDINSKY5,
    KREA2,
    LONGCAT_IMAGE,
    MINIMAX_H3,
    MOCHI,
    OMNIGEN2,
    OVIS_IMAGE,
    PIXART_SIGMA,
    PRX,
    SANA,
    SDXL_CONTROLNET,
    SKYREELS_V2,
    STABLE_CASCADE_C,
)


VARIANTS = (  # families that grew out of one model, or that no weight tells apart: LoRAs go from one to another
    frozenset({"flux", "chroma"}),
    frozenset({"hunyuan-video", "framepack"}),
    frozenset({"wan21-14b-t2v", "wan21-14b-i2v", "skyreels-v2"}),
    frozenset({"cosmos-predict2", "anima"}),
    frozenset({"cogview3plus", "cogview4"}),
)


def related(one: str | None, other: str | None) -> bool:
    """Tell whether two families are the same, or variants of a model that share LoRAs as far as layers fit.

    >>> related("flux", "chroma"), related("flux", "hunyuan-video")
    (True, False)
    """
    return one == other or any({one, other} <= group for group in VARIANTS)


def architecture(id: str) -> Architecture:
    """Return the family of that id.

    Raises:
        KeyError: there is no such family.
    """
    found = _by_id().get(id)
    if found is None:
        raise KeyError(f"no model family {id!r}; known: {', '.join(_by_id())}")
    return found


@lru_cache(maxsize=1)
def _by_id() -> dict[str, Architecture]:
    return {family.id: family for family in ARCHITECTURES}
