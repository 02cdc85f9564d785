"""GLM-Image's body, in whatever size. Names: Diffusers' GlmImageTransformer2DModel, the one layout in use."""

from __future__ import annotations

from ..model import Group, Row

BLOCK = tuple(
    Row(name, name, shape)
    for name, shape in (
        ("norm1.linear", ("12*width", "time")),
        ("attn1.to_q", ("width", "width")),
        ("attn1.to_k", ("width", "width")),
        ("attn1.to_v", ("width", "width")),
        ("attn1.to_out.0", ("width", "width")),
        ("ff.net.0.proj", ("4*width", "width")),
        ("ff.net.2", ("width", "4*width")),
    )
)
ENDS = tuple(
    Row(name, name, shape)
    for name, shape in (
        ("image_projector.proj", ("width", 64)),
        ("glyph_projector.net.0.proj", ("width", 1472)),
        ("glyph_projector.net.2", ("width", "width")),
        ("prior_token_embedding", (16384, "width")),
        ("prior_projector.net.0.proj", ("width", "width")),
        ("prior_projector.net.2", ("width", "width")),
        ("time_condition_embed.timestep_embedder.linear_1", ("time", "time")),
        ("time_condition_embed.timestep_embedder.linear_2", ("time", "time")),
        ("time_condition_embed.condition_embedder.linear_1", ("time", 1024)),
        ("time_condition_embed.condition_embedder.linear_2", ("time", "time")),
        ("norm_out.linear", ("2*width", "time")),
        ("proj_out", (64, "width")),
    )
)
GLM_30 = (Group("", "", ENDS), Group("transformer_blocks.{0-29}", "transformer_blocks.{0-29}", BLOCK))
