"""The families' tables against the parameter lists of the real models, in every layout."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorasmith.convert.architectures import ARCHITECTURES, architecture
from lorasmith.convert.model import Module, modules

MODELS = Path(__file__).parent / "models"
BARE = ("weight", "bias", "scale")  # parameters that belong to a module; others are named whole
UNNAMED = (  # parameters that no adapter touches, so that a table may leave them out
    *("_table", "modulation", "position_ids", "pos_embed", "positional_embedding", "positional_encoding", "_token"),
    *("pos_frequencies", "y_embedding", "image_index_embedding", "text_embedding_padding", "register_tokens", "seq"),
    *("dim_spatial_range", "dim_temporal_range", "logit_scale", "table_a2v_ca_audio", "table_a2v_ca_video", "gamma"),
)
SHORTER = {  # models that lack what their family's table has
    "clip_h.transformers": "text_model.encoder.layers.23.",  # transformers' conversion lacks OpenCLIP's last layer
    "pixart-sigma.pixart": ("csize_embedder.", "ar_embedder."),  # PixArt-Alpha's alone
}

PARTS = {("anima.cosmos", "llm_adapter"): "llm_adapter."}  # components inside of a model: how their names begin
LAYOUTS = (  # a model's parameter list, the family and component whose table it proves, the layout, what comes before
    ("ace-step.diffusers", "ace-step", "denoiser", "diffusers", ""),
    ("anima.cosmos", "anima", "denoiser", "original", ""),
    ("anima.cosmos", "anima", "llm_adapter", "original", ""),
    ("auraflow.comfy", "auraflow", "denoiser", "original", ""),
    ("auraflow.diffusers", "auraflow", "denoiser", "diffusers", ""),
    ("bria-fibo.diffusers", "bria-fibo", "denoiser", "diffusers", ""),
    ("chroma.bfl", "chroma", "denoiser", "original", ""),
    ("chroma.diffusers", "chroma", "denoiser", "diffusers", ""),
    ("clip_g.transformers", "sdxl", "clip_g", "original", ""),
    ("clip_h.transformers", "sd21", "clip_h", "original", "text_model."),
    ("clip_l.transformers", "sd15", "clip_l", "original", "text_model."),
    ("clip_l_proj.transformers", "sd3-medium", "clip_l", "original", ""),
    ("cogvideox-5b.diffusers", "cogvideox", "denoiser", "diffusers", ""),
    ("cogview3plus.diffusers", "cogview3plus", "denoiser", "diffusers", ""),
    ("cogview4.diffusers", "cogview4", "denoiser", "diffusers", ""),
    ("cosmos-predict2-2b.diffusers", "cosmos-predict2", "denoiser", "diffusers", ""),
    ("cosmos-predict2-2b.nvidia", "cosmos-predict2", "denoiser", "original", ""),
    ("ernie-image.diffusers", "ernie-image", "denoiser", "diffusers", ""),
    ("flux-dev.bfl", "flux", "denoiser", "original", ""),
    ("flux-dev.diffusers", "flux", "denoiser", "diffusers", ""),
    ("flux2-dev.bfl", "flux2-dev", "denoiser", "original", ""),
    ("flux2-dev.diffusers", "flux2-dev", "denoiser", "diffusers", ""),
    ("flux2-klein4b.bfl", "flux2-klein4b", "denoiser", "original", ""),
    ("flux2-klein4b.diffusers", "flux2-klein4b", "denoiser", "diffusers", ""),
    ("flux2-klein9b.bfl", "flux2-klein9b", "denoiser", "original", ""),
    ("flux2-klein9b.diffusers", "flux2-klein9b", "denoiser", "diffusers", ""),
    ("flux3.diffusers", "flux3", "denoiser", "diffusers", ""),
    ("gemma2_2b.transformers", "lumina2", "gemma2_2b", "diffusers", ""),
    ("glm-image.diffusers", "glm-image", "denoiser", "diffusers", ""),
    ("hidream-i1.comfy", "hidream", "denoiser", "original", ""),
    ("hidream-i1.diffusers", "hidream", "denoiser", "diffusers", ""),
    ("hunyuan-image21.diffusers", "hunyuan-image21", "denoiser", "diffusers", ""),
    ("hunyuan-image21.tencent", "hunyuan-image21", "denoiser", "original", ""),
    ("hunyuan-video.diffusers", "hunyuan-video", "denoiser", "diffusers", ""),
    ("hunyuan-video.tencent", "hunyuan-video", "denoiser", "original", ""),
    ("hunyuan-video15.diffusers", "hunyuan-video15", "denoiser", "diffusers", ""),
    ("hunyuan-video15.tencent", "hunyuan-video15", "denoiser", "original", ""),
    ("hunyuandit.comfy", "hunyuandit", "denoiser", "original", ""),
    ("ideogram4.diffusers", "ideogram4", "denoiser", "diffusers", ""),
    ("kandinsky5.comfy", "kandinsky5", "denoiser", "original", ""),
    ("kandinsky5.diffusers", "kandinsky5", "denoiser", "diffusers", ""),
    ("krea2.diffusers", "krea2", "denoiser", "diffusers", ""),
    ("longcat-image.diffusers", "longcat-image", "denoiser", "diffusers", ""),
    ("ltx-video-2b.comfy", "ltx-video", "denoiser", "original", ""),
    ("ltx-video-2b.diffusers", "ltx-video", "denoiser", "diffusers", ""),
    ("ltx2.comfy", "ltx2", "denoiser", "original", ""),
    ("ltx2.diffusers", "ltx2", "denoiser", "diffusers", ""),
    ("lumina2.diffusers", "lumina2", "denoiser", "diffusers", ""),
    ("lumina2.lumina", "lumina2", "denoiser", "original", ""),
    ("minimax-h3.diffusers", "minimax-h3", "denoiser", "diffusers", ""),
    ("mochi.diffusers", "mochi", "denoiser", "diffusers", ""),
    ("mochi.genmo", "mochi", "denoiser", "original", ""),
    ("omnigen2.comfy", "omnigen2", "denoiser", "original", ""),
    ("ovis-image.diffusers", "ovis-image", "denoiser", "diffusers", ""),
    ("pixart-sigma.diffusers", "pixart-sigma", "denoiser", "diffusers", ""),
    ("pixart-sigma.pixart", "pixart-sigma", "denoiser", "original", ""),
    ("prx.diffusers", "prx", "denoiser", "diffusers", ""),
    ("qwen-image.comfy", "qwen-image", "denoiser", "original", ""),
    ("qwen-image.diffusers", "qwen-image", "denoiser", "diffusers", ""),
    ("qwen-image21.diffusers", "qwen-image21", "denoiser", "diffusers", ""),
    ("qwen3_0.6b.transformers", "anima", "qwen3_06b", "diffusers", ""),
    ("qwen3_4b.transformers", "z-image", "qwen3_4b", "diffusers", ""),
    ("sana-1.6b.diffusers", "sana", "denoiser", "diffusers", ""),
    ("sd15.diffusers.unet", "sd15", "denoiser", "diffusers", ""),
    ("sd15.ldm.unet", "sd15", "denoiser", "original", ""),
    ("sd15.ldm.clip_l", "sd15", "clip_l", "original", "text_model."),
    ("sd21.diffusers.unet", "sd21", "denoiser", "diffusers", ""),
    ("sd21.ldm.unet", "sd21", "denoiser", "original", ""),
    ("sd3-medium.diffusers", "sd3-medium", "denoiser", "diffusers", ""),
    ("sd3-medium.mmdit", "sd3-medium", "denoiser", "original", ""),
    ("sd35-large.diffusers", "sd35-large", "denoiser", "diffusers", ""),
    ("sd35-large.mmdit", "sd35-large", "denoiser", "original", ""),
    ("sd35-medium.diffusers", "sd35-medium", "denoiser", "diffusers", ""),
    ("sd35-medium.mmdit", "sd35-medium", "denoiser", "original", ""),
    ("sdxl-refiner.diffusers.unet", "sdxl-refiner", "denoiser", "diffusers", ""),
    ("sdxl-refiner.ldm.unet", "sdxl-refiner", "denoiser", "original", ""),
    ("sdxl.diffusers.unet", "sdxl", "denoiser", "diffusers", ""),
    ("sdxl.ldm.unet", "sdxl", "denoiser", "original", ""),
    ("skyreels-v2.diffusers", "skyreels-v2", "denoiser", "diffusers", ""),
    ("stable-cascade-c.diffusers", "stable-cascade-c", "denoiser", "diffusers", ""),
    ("stable-cascade-c.sai", "stable-cascade-c", "denoiser", "original", ""),
    ("t5xxl.transformers", "flux", "t5xxl", "original", ""),
    ("umt5xxl.transformers", "wan21-14b-t2v", "umt5xxl", "original", ""),
    ("wan21-1.3b-t2v.diffusers", "wan21-1.3b-t2v", "denoiser", "diffusers", ""),
    ("wan21-1.3b-t2v.wan", "wan21-1.3b-t2v", "denoiser", "original", ""),
    ("wan21-14b-i2v.diffusers", "wan21-14b-i2v", "denoiser", "diffusers", ""),
    ("wan21-14b-i2v.wan", "wan21-14b-i2v", "denoiser", "original", ""),
    ("wan21-14b-t2v.diffusers", "wan21-14b-t2v", "denoiser", "diffusers", ""),
    ("wan21-14b-t2v.wan", "wan21-14b-t2v", "denoiser", "original", ""),
    ("wan22-5b-ti2v.diffusers", "wan22-5b", "denoiser", "diffusers", ""),
    ("wan22-5b-ti2v.wan", "wan22-5b", "denoiser", "original", ""),
    ("z-image.diffusers", "z-image", "denoiser", "diffusers", ""),
    ("z-image.lumina", "z-image", "denoiser", "original", ""),
)


@pytest.mark.parametrize(("dump", "family", "component", "layout", "before"), LAYOUTS, ids=lambda value: str(value))
def test_the_table_names_every_weight_of_the_model_with_its_shape(dump, family, component, layout, before):
    part = architecture(family).component(component)
    assert part is not None
    table = {name: shape for module in modules(part) for name, shape in named(module, layout)}
    inside = PARTS.get((dump, component), "")
    others = tuple(text for (name, other), text in PARTS.items() if name == dump and other != component)
    model = {
        before + name.removeprefix(inside): shape
        for name, shape in parameters(dump)
        if name.startswith(inside) and not (others and name.startswith(others))
    }
    weights = {name: shape for name, shape in model.items() if len(shape) >= 2 and not name.endswith(UNNAMED)}
    assert {name for name in weights if name not in table} == set(), "weights that the table lacks"
    absent = {name for name in table if name not in model and not (dump in SHORTER and name.startswith(SHORTER[dump]))}
    assert absent == set(), "names that the model has not"
    wrong = {name: (table[name], model[name]) for name in table if name in model and table[name] != model[name]}
    assert wrong == {}, "table's shape, model's shape"


@pytest.mark.parametrize("family", [family.id for family in ARCHITECTURES])
def test_every_name_of_a_family_is_there_once(family):
    for part in architecture(family).components:
        for layout in ("original", "diffusers"):
            names = [name for module in modules(part) for name, _ in named(module, layout)]
            assert len(names) == len(set(names))
    for part in architecture(family).components:
        assert all(sum(module.blocks) == module.shape[0] for module in modules(part) if module.blocks)


def named(module: Module, layout: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names that a module has in a layout, each with the shape of what it names."""
    if layout == "original":
        yield module.original, module.shape
        return
    heights = module.blocks or module.shape[:1]
    for name, height in zip(module.diffusers, heights, strict=True):
        yield name, (height, *module.shape[1:])


def parameters(dump: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the modules of a real model by name with their weight's shape; other parameters under their whole name."""
    keys = json.loads(gzip.decompress((MODELS / f"{dump}.json.gz").read_bytes()))["keys"]
    for key, shape in keys.items():
        module, _, parameter = key.rpartition(".")
        if parameter not in ("bias", "beta") and not parameter.startswith("in_proj_"):
            yield module if parameter in BARE else key, tuple(shape)
