"""LTX-2 19B, video with sound. Names and shapes: Lightricks' checkpoint and Diffusers' LTX2VideoTransformer3DModel.

Between the text encoder and the transformer lie the connectors, a model of their own in Diffusers (LTX2TextConnectors);
ComfyUI has their blocks in the transformer, and the projection before them beside the text encoder.
"""

from __future__ import annotations

from ..model import Architecture, Component, Group, Naming, Row
from .blocks import DIT_PREFIXES
from .ltx import LTX_ADALN, LTX_ATTENTION, LTX_CAPTION, LTX_FEED_FORWARD

ENDS = (
    Row("patchify_proj", "proj_in", ("video", 128)),
    Row("proj_out", "proj_out", (128, "video")),
    Row("audio_patchify_proj", "audio_proj_in", ("audio", 128)),
    Row("audio_proj_out", "audio_proj_out", (128, "audio")),
)
EMBEDDERS = (  # original name, Diffusers name, width, modulations
    ("adaln_single", "time_embed", 4096, 6),
    ("audio_adaln_single", "audio_time_embed", 2048, 6),
    ("av_ca_video_scale_shift_adaln_single", "av_cross_attn_video_scale_shift", 4096, 4),
    ("av_ca_audio_scale_shift_adaln_single", "av_cross_attn_audio_scale_shift", 2048, 4),
    ("av_ca_a2v_gate_adaln_single", "av_cross_attn_video_a2v_gate", 4096, 1),
    ("av_ca_v2a_gate_adaln_single", "av_cross_attn_audio_v2a_gate", 2048, 1),
)
ATTENTIONS = (  # name in a block, width, context, width inside
    ("attn1", 4096, 4096, 4096),
    ("attn2", 4096, 4096, 4096),
    ("audio_attn1", 2048, 2048, 2048),
    ("audio_attn2", 2048, 2048, 2048),
    ("audio_to_video_attn", 4096, 2048, 2048),
    ("video_to_audio_attn", 2048, 4096, 2048),
)
BLOCK = "transformer_blocks.{0-47}"
CONNECTORS = tuple(
    (f"{kind}_embeddings_connector.transformer_1d_blocks.{{0-1}}", f"{kind}_connector.transformer_blocks.{{0-1}}")
    for kind in ("video", "audio")
)

LTX2 = Architecture(
    id="ltx2",
    name="LTX-2",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", ENDS),
                *(
                    Group(original, diffusers, LTX_ADALN, {"width": width, "modulation": number * width})
                    for original, diffusers, width, number in EMBEDDERS
                ),
                Group("caption_projection", "caption_projection", LTX_CAPTION, {"width": 4096}),
                Group("audio_caption_projection", "audio_caption_projection", LTX_CAPTION, {"width": 2048}),
                *(
                    Group(
                        f"{BLOCK}.{name}",
                        f"{BLOCK}.{name}",
                        LTX_ATTENTION,
                        {"width": width, "context": context, "inner": inner},
                    )
                    for name, width, context, inner in ATTENTIONS
                ),
                Group(f"{BLOCK}.ff", f"{BLOCK}.ff", LTX_FEED_FORWARD, {"width": 4096}),
                Group(f"{BLOCK}.audio_ff", f"{BLOCK}.audio_ff", LTX_FEED_FORWARD, {"width": 2048}),
            ),
            sizes={"video": 4096, "audio": 2048, "caption": 3840},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        Component(
            "connectors",
            groups=(
                *(
                    Group(f"{original}.attn1", f"{diffusers}.attn1", LTX_ATTENTION, {"context": 3840, "inner": 3840})
                    for original, diffusers in CONNECTORS
                ),
                *(Group(f"{original}.ff", f"{diffusers}.ff", LTX_FEED_FORWARD) for original, diffusers in CONNECTORS),
            ),
            sizes={"width": 3840},
            prefixes={
                "kohya": ("lora_unet", "lycoris"),
                "diffusers": ("connectors",),
                "comfy": ("diffusion_model",),
                "peft": ("connectors.base_model.model", "base_model.model"),
                "bare": ("", "model.diffusion_model"),
            },
            checkpoint=("model.diffusion_model",),
            folder="connectors",
        ),
        Component(
            "text_projection",
            groups=(
                Group("", "", (Row("text_embedding_projection", "text_proj_in", (3840, 188160)),)),  # 49 layers' states
            ),
            prefixes={
                "kohya": ("lora_te",),
                "diffusers": ("connectors",),
                "comfy": ("text_encoders",),
                "peft": ("connectors.base_model.model",),
                "bare": ("",),
            },
            folder="connectors",
        ),
    ),
    namings=(  # Lightricks' own files
        Naming(
            "aggregate",
            of="original",
            endings=(("text_embedding_projection", "text_embedding_projection.aggregate_embed"),),
        ),
    ),
    metadata={"ss_base_model_version": "ltx2", "modelspec.architecture": "ltx-2/lora"},
    hints={"ss_base_model_version": ("ltx2",), "modelspec.architecture": ("ltx-2",)},
)
