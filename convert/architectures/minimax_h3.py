"""MiniMax H3. Names and shapes: the checkpoint that ComfyUI loads and Diffusers' MiniMaxH3Transformer3DModel.

The feed-forward's first weight holds gate and value; Diffusers holds value and gate (its
`convert_minimax_h3_transformer_checkpoint_to_diffusers`).
"""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import DIT_PREFIXES

REFINER = (
    Row("attn.qkv_proj", ("attn.to_q", "attn.to_k", "attn.to_v"), ("3*inner", "width")),
    Row("attn.out_proj", "attn.to_out.0", ("width", "inner")),
    Row("attn.q_norm", "attn.norm_q", (128,)),
    Row("attn.k_norm", "attn.norm_k", (128,)),
    Row("mlp.fc1", "ff.net.0.proj", ("2*mlp", "width"), swapped=True),
    Row("mlp.fc2", "ff.net.2", ("width", "mlp")),
    Row("norm1", "norm1", ("width",)),
    Row("norm2", "norm2", ("width",)),
)
BLOCK = (*REFINER, Row("adaln_proj.linear", "adaln_proj.linear", ("18*width", "time")))
ENDS = (
    Row("video_patch_proj", "proj_in", ("width", 96)),
    Row("audio_patch_proj", "audio_proj_in", ("width", 32)),
    Row("condition_proj", "context_embedder", ("width", 5120)),
    Row("time_embedder.proj_in", "time_embedder.linear_1", ("width", 256)),
    Row("time_embedder.proj_out", "time_embedder.linear_2", ("time", "width")),
    Row("token_refiner.final_norm", "token_refiner.final_norm", ("width",)),
    Row("final_layer.norm", "norm_out.norm", ("width",)),
    Row("final_layer.adaln_proj.linear", "norm_out.linear", ("2*width", "time")),
    Row("final_layer.video_out", "proj_out", (96, "width")),
    Row("final_layer.audio_out", "audio_proj_out", (32, "width")),
)

MINIMAX_H3 = Architecture(
    id="minimax-h3",
    name="MiniMax H3",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", ENDS),
                Group("token_refiner.blocks.{0-1}", "token_refiner.refiner_blocks.{0-1}", REFINER),
                Group("blocks.{0-49}", "transformer_blocks.{0-49}", BLOCK),
            ),
            sizes={"width": 5376, "inner": 7168, "mlp": 14336, "time": 2688},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
    ),
    metadata={"ss_base_model_version": "minimax_h3"},
    hints={"ss_base_model_version": ("minimax_h3",)},
)
