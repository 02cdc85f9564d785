"""Kandinsky 5.0 Lite, text to video. Names and shapes: Kandinsky Lab's checkpoint, whose names Diffusers kept."""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import DIT_PREFIXES
from .text_encoders import CLIP_L, CLIP_L_SIZES, QWEN25_7B, QWEN25_7B_SIZES

ENDS = (
    Row("time_embeddings.in_layer", "time_embeddings.in_layer", ("time", "width")),
    Row("time_embeddings.out_layer", "time_embeddings.out_layer", ("time", "time")),
    Row("text_embeddings.in_layer", "text_embeddings.in_layer", ("width", 3584)),
    Row("text_embeddings.norm", "text_embeddings.norm", ("width",)),
    Row("pooled_text_embeddings.in_layer", "pooled_text_embeddings.in_layer", ("time", 768)),
    Row("pooled_text_embeddings.norm", "pooled_text_embeddings.norm", ("time",)),
    Row("visual_embeddings.in_layer", "visual_embeddings.in_layer", ("width", "visual")),
    Row("out_layer.modulation.out_layer", "out_layer.modulation.out_layer", ("2*width", "time")),
    Row("out_layer.out_layer", "out_layer.out_layer", (64, "width")),
)
ATTENTION = (
    Row("to_query", "to_query", ("width", "width")),
    Row("to_key", "to_key", ("width", "width")),
    Row("to_value", "to_value", ("width", "width")),
    Row("query_norm", "query_norm", (64,)),
    Row("key_norm", "key_norm", (64,)),
    Row("out_layer", "out_layer", ("width", "width")),
)
FEED_FORWARD = (
    Row("in_layer", "in_layer", ("mlp", "width")),
    Row("out_layer", "out_layer", ("width", "mlp")),
)
MODULATION = (Row("out_layer", "out_layer", ("modulation", "time")),)
GROUPS = (  # name below the model, rows, modulations
    ("text_transformer_blocks.{0-1}.text_modulation", MODULATION, 6),
    ("text_transformer_blocks.{0-1}.self_attention", ATTENTION, 0),
    ("text_transformer_blocks.{0-1}.feed_forward", FEED_FORWARD, 0),
    ("visual_transformer_blocks.{0-31}.visual_modulation", MODULATION, 9),
    ("visual_transformer_blocks.{0-31}.self_attention", ATTENTION, 0),
    ("visual_transformer_blocks.{0-31}.cross_attention", ATTENTION, 0),
    ("visual_transformer_blocks.{0-31}.feed_forward", FEED_FORWARD, 0),
)

KANDINSKY5 = Architecture(
    id="kandinsky5",
    name="Kandinsky 5.0 Lite",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", ENDS),
                *(Group(name, name, rows, {"modulation": number * 1792}) for name, rows, number in GROUPS),
            ),
            sizes={"width": 1792, "mlp": 7168, "time": 512, "visual": 132},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        Component(
            "qwen25_7b",
            groups=QWEN25_7B,
            sizes=QWEN25_7B_SIZES,
            prefixes={
                "kohya": ("lora_te1",),
                "diffusers": ("text_encoder",),
                "comfy": ("text_encoders.qwen25_7b.transformer",),
                "peft": ("text_encoder.base_model.model",),
            },
            checkpoint=("text_encoders.qwen25_7b.transformer",),
            folder="text_encoder",
        ),
        Component(
            "clip_l",
            groups=CLIP_L,
            sizes=CLIP_L_SIZES,
            prefixes={
                "kohya": ("lora_te", "lora_te2"),  # the first is the name by which ComfyUI knows CLIP
                "diffusers": ("text_encoder_2",),
                "comfy": ("text_encoders.clip_l.transformer",),
                "peft": ("text_encoder_2.base_model.model",),
            },
            checkpoint=("text_encoders.clip_l.transformer",),
            folder="text_encoder_2",
        ),
    ),
    metadata={"ss_base_model_version": "kandinsky5", "modelspec.architecture": "Kandinsky-5/lora"},
    hints={"ss_base_model_version": ("kandinsky5",), "modelspec.architecture": ("Kandinsky-5",)},
)
