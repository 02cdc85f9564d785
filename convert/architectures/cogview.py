"""The body that CogView3-Plus and CogView4 share, down to its sizes."""

from __future__ import annotations

from ..model import Group, Row

COGVIEW = (
    Group(
        "",
        "",
        (
            Row("patch_embed.proj", "patch_embed.proj", ("width", 64)),
            Row("patch_embed.text_proj", "patch_embed.text_proj", ("width", 4096)),
            Row("norm_out.linear", "norm_out.linear", ("2*width", "time")),
            Row("proj_out", "proj_out", (64, "width")),
        ),
    ),
    Group(
        "time_condition_embed",
        "time_condition_embed",
        (
            Row("timestep_embedder.linear_1", "timestep_embedder.linear_1", ("time", "width")),
            Row("timestep_embedder.linear_2", "timestep_embedder.linear_2", ("time", "time")),
            Row("condition_embedder.linear_1", "condition_embedder.linear_1", ("time", 1536)),
            Row("condition_embedder.linear_2", "condition_embedder.linear_2", ("time", "time")),
        ),
    ),
    *(
        Group(
            blocks,
            blocks,
            (
                Row("norm1.linear", "norm1.linear", ("12*width", "time")),
                Row("attn1.to_q", "attn1.to_q", ("width", "width")),
                Row("attn1.to_k", "attn1.to_k", ("width", "width")),
                Row("attn1.to_v", "attn1.to_v", ("width", "width")),
                Row("attn1.to_out.0", "attn1.to_out.0", ("width", "width")),
                Row("ff.net.0.proj", "ff.net.0.proj", ("4*width", "width")),
                Row("ff.net.2", "ff.net.2", ("width", "4*width")),
            ),
        )
        for blocks in ("transformer_blocks.{0-29}",)
    ),
)
COGVIEW_SIZES = {"width": 2560, "time": 512}
