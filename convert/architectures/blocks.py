"""Building blocks that the UNet families and CLIP text encoders share: rows below a group's name."""

from __future__ import annotations

from ..model import Positional, Row

RESNET = (
    Row("in_layers.0", "norm1", ("in",)),
    Row("in_layers.2", "conv1", ("out", "in", 3, 3)),
    Row("emb_layers.1", "time_emb_proj", ("out", "time")),
    Row("out_layers.0", "norm2", ("out",)),
    Row("out_layers.3", "conv2", ("out", "out", 3, 3)),
)
RESNET_SKIP = (*RESNET, Row("skip_connection", "conv_shortcut", ("out", "in", 1, 1)))

SPATIAL_CONV = (  # SD 1.x: 1x1 convolutions around the transformer
    Row("norm", "norm", ("width",)),
    Row("proj_in", "proj_in", ("width", "width", 1, 1)),
    Row("proj_out", "proj_out", ("width", "width", 1, 1)),
)
SPATIAL_LINEAR = (  # SD 2.x and later
    Row("norm", "norm", ("width",)),
    Row("proj_in", "proj_in", ("width", "width")),
    Row("proj_out", "proj_out", ("width", "width")),
)
TRANSFORMER = (
    Row("attn1.to_q", "attn1.to_q", ("width", "width")),
    Row("attn1.to_k", "attn1.to_k", ("width", "width")),
    Row("attn1.to_v", "attn1.to_v", ("width", "width")),
    Row("attn1.to_out.0", "attn1.to_out.0", ("width", "width")),
    Row("ff.net.0.proj", "ff.net.0.proj", ("8*width", "width")),
    Row("ff.net.2", "ff.net.2", ("width", "4*width")),
    Row("attn2.to_q", "attn2.to_q", ("width", "width")),
    Row("attn2.to_k", "attn2.to_k", ("width", "context")),
    Row("attn2.to_v", "attn2.to_v", ("width", "context")),
    Row("attn2.to_out.0", "attn2.to_out.0", ("width", "width")),
    Row("norm1", "norm1", ("width",)),
    Row("norm2", "norm2", ("width",)),
    Row("norm3", "norm3", ("width",)),
)
DOWNSAMPLE = (Row("op", "conv", ("width", "width", 3, 3)),)
UPSAMPLE = (Row("conv", "conv", ("width", "width", 3, 3)),)
ENDS = (
    Row("time_embed.0", "time_embedding.linear_1", ("time", "first")),
    Row("time_embed.2", "time_embedding.linear_2", ("time", "time")),
    Row("input_blocks.0.0", "conv_in", ("first", "latent", 3, 3)),
    Row("out.0", "conv_norm_out", ("first",)),
    Row("out.2", "conv_out", ("latent", "first", 3, 3)),
)

CLIP_LAYER = (
    Row("self_attn.q_proj", "self_attn.q_proj", ("width", "width")),
    Row("self_attn.k_proj", "self_attn.k_proj", ("width", "width")),
    Row("self_attn.v_proj", "self_attn.v_proj", ("width", "width")),
    Row("self_attn.out_proj", "self_attn.out_proj", ("width", "width")),
    Row("mlp.fc1", "mlp.fc1", ("4*width", "width")),
    Row("mlp.fc2", "mlp.fc2", ("width", "4*width")),
    Row("layer_norm1", "layer_norm1", ("width",)),
    Row("layer_norm2", "layer_norm2", ("width",)),
)
CLIP_ENDS = (
    Row("embeddings.token_embedding", "embeddings.token_embedding", (49408, "width")),
    Row("embeddings.position_embedding", "embeddings.position_embedding", (77, "width")),
    Row("final_layer_norm", "final_layer_norm", ("width",)),
)

UNET_PREFIXES = {
    "kohya": ("lora_unet", "lycoris"),
    "oft": ("oft_unet",),
    "onetrainer": ("lora_unet",),
    "diffusers": ("unet",),
    "comfy": ("diffusion_model",),
    "peft": ("base_model.model", "unet.base_model.model"),
    "bare": ("",),
    "positional": ("unet",),
}
DIT_PREFIXES = {
    "kohya": ("lora_unet", "lora_unet_", "lycoris"),  # Fun's trainer joins with two underscores
    "oft": ("oft_unet",),
    "diffusers": ("transformer",),
    "comfy": ("diffusion_model",),
    "peft": ("base_model.model", "transformer.base_model.model"),
    "bare": ("", "net", "model.diffusion_model"),
}
# OneTrainer's first families, which it flattens under a word of its own; later ones are `transformer.` with dots.
FLAT_DIT_PREFIXES = {**DIT_PREFIXES, "onetrainer": ("lora_transformer",)}

_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
TRANSFORMER_POSITIONS = (
    *(("CrossAttention", f"attn1.{name}") for name in _PROJECTIONS),
    ("GEGLU", "ff.net.0.proj"),
    *(("CrossAttention", f"attn2.{name}") for name in _PROJECTIONS),
)
CLIP_POSITIONS = (
    Positional(
        "text_model.encoder.layers.{0-22}",  # as many as Diffusers has of SD 2.x; what a family lacks is left out
        tuple(("CLIPAttention", f"self_attn.{name}") for name in ("k_proj", "v_proj", "q_proj", "out_proj")),
    ),
)
RESNET_POSITIONS = tuple(("ResnetBlock2D", name) for name in ("conv1", "time_emb_proj", "conv2", "conv_shortcut"))
SD_UNET_POSITIONS = (
    *(
        run
        for block in (0, 1, 2)
        for run in (
            Positional(f"down_blocks.{block}.attentions.{{0-1}}.transformer_blocks.0", TRANSFORMER_POSITIONS),
            Positional(f"down_blocks.{block}.resnets.{{0-1}}", RESNET_POSITIONS),
        )
    ),
    Positional("down_blocks.3.resnets.{0-1}", RESNET_POSITIONS),
    Positional("up_blocks.0.resnets.{0-2}", RESNET_POSITIONS),
    *(
        run
        for block in (1, 2, 3)
        for run in (
            Positional(f"up_blocks.{block}.attentions.{{0-2}}.transformer_blocks.0", TRANSFORMER_POSITIONS),
            Positional(f"up_blocks.{block}.resnets.{{0-2}}", RESNET_POSITIONS),
        )
    ),
    Positional("mid_block.attentions.0.transformer_blocks.0", TRANSFORMER_POSITIONS),
    Positional("mid_block.resnets.{0-1}", RESNET_POSITIONS),
)
