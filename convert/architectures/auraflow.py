"""AuraFlow. Names and shapes: the original checkpoint and Diffusers' AuraFlowTransformer2DModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import DIT_PREFIXES

AURAFLOW = Architecture(
    id="auraflow",
    name="AuraFlow",
    components=(
        Component(
            "denoiser",
            groups=(
                Group(
                    "",
                    "",
                    (
                        Row("init_x_linear", "pos_embed.proj", ("width", 16)),
                        Row("cond_seq_linear", "context_embedder", ("width", 2048)),
                        Row("t_embedder.mlp.0", "time_step_proj.linear_1", ("width", 256)),
                        Row("t_embedder.mlp.2", "time_step_proj.linear_2", ("width", "width")),
                        Row("modF.1", "norm_out.linear", ("2*width", "width"), swapped=True),
                        Row("final_linear", "proj_out", (16, "width")),
                    ),
                ),
                Group(
                    "double_layers.{0-3}",
                    "joint_transformer_blocks.{0-3}",
                    (
                        Row("attn.w2q", "attn.to_q", ("width", "width")),
                        Row("attn.w2k", "attn.to_k", ("width", "width")),
                        Row("attn.w2v", "attn.to_v", ("width", "width")),
                        Row("attn.w2o", "attn.to_out.0", ("width", "width")),
                        Row("attn.w1q", "attn.add_q_proj", ("width", "width")),
                        Row("attn.w1k", "attn.add_k_proj", ("width", "width")),
                        Row("attn.w1v", "attn.add_v_proj", ("width", "width")),
                        Row("attn.w1o", "attn.to_add_out", ("width", "width")),
                        Row("mlpX.c_fc1", "ff.linear_1", ("mlp", "width")),
                        Row("mlpX.c_fc2", "ff.linear_2", ("mlp", "width")),
                        Row("mlpX.c_proj", "ff.out_projection", ("width", "mlp")),
                        Row("mlpC.c_fc1", "ff_context.linear_1", ("mlp", "width")),
                        Row("mlpC.c_fc2", "ff_context.linear_2", ("mlp", "width")),
                        Row("mlpC.c_proj", "ff_context.out_projection", ("width", "mlp")),
                        Row("modX.1", "norm1.linear", ("6*width", "width")),
                        Row("modC.1", "norm1_context.linear", ("6*width", "width")),
                    ),
                ),
                Group(
                    "single_layers.{0-31}",
                    "single_transformer_blocks.{0-31}",
                    (
                        Row("attn.w1q", "attn.to_q", ("width", "width")),
                        Row("attn.w1k", "attn.to_k", ("width", "width")),
                        Row("attn.w1v", "attn.to_v", ("width", "width")),
                        Row("attn.w1o", "attn.to_out.0", ("width", "width")),
                        Row("mlp.c_fc1", "ff.linear_1", ("mlp", "width")),
                        Row("mlp.c_fc2", "ff.linear_2", ("mlp", "width")),
                        Row("mlp.c_proj", "ff.out_projection", ("width", "mlp")),
                        Row("modCX.1", "norm1.linear", ("6*width", "width")),
                    ),
                ),
            ),
            sizes={"width": 3072, "mlp": 8192},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model", "model"),
            folder="transformer",
        ),
    ),
    aitoolkit=("diffusers", "diffusers"),
    metadata={"ss_base_model_version": "auraflow"},
    hints={"ss_base_model_version": ("auraflow",)},
)
