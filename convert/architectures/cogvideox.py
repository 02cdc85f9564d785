"""CogVideoX 5B. Names and shapes: ComfyUI's model and Diffusers' CogVideoXTransformer3DModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import DIT_PREFIXES

COGVIDEOX = Architecture(
    id="cogvideox",
    name="CogVideoX",
    components=(
        Component(
            "denoiser",
            groups=(
                Group(
                    "",
                    "",
                    (
                        Row("patch_embed.proj", "patch_embed.proj", ("width", 16, 2, 2)),
                        Row("patch_embed.text_proj", "patch_embed.text_proj", ("width", 4096)),
                        Row("time_embedding_linear_1", "time_embedding.linear_1", ("time", "width")),
                        Row("time_embedding_linear_2", "time_embedding.linear_2", ("time", "time")),
                        Row("norm_final", "norm_final", ("width",)),
                        Row("norm_out.linear", "norm_out.linear", ("2*width", "time")),
                        Row("norm_out.norm", "norm_out.norm", ("width",)),
                        Row("proj_out", "proj_out", (64, "width")),
                    ),
                ),
                Group(
                    "blocks.{0-41}",
                    "transformer_blocks.{0-41}",
                    (
                        Row("norm1.linear", "norm1.linear", ("6*width", "time")),
                        Row("norm1.norm", "norm1.norm", ("width",)),
                        Row("q", "attn1.to_q", ("width", "width")),
                        Row("k", "attn1.to_k", ("width", "width")),
                        Row("v", "attn1.to_v", ("width", "width")),
                        Row("attn_out", "attn1.to_out.0", ("width", "width")),
                        Row("norm_q", "attn1.norm_q", (64,)),
                        Row("norm_k", "attn1.norm_k", (64,)),
                        Row("norm2.linear", "norm2.linear", ("6*width", "time")),
                        Row("norm2.norm", "norm2.norm", ("width",)),
                        Row("ff_proj", "ff.net.0.proj", ("4*width", "width")),
                        Row("ff_out", "ff.net.2", ("width", "4*width")),
                    ),
                ),
            ),
            sizes={"width": 3072, "time": 512},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
    ),
    aitoolkit=("diffusers", "diffusers"),
)
