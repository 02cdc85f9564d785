"""Text encoders of the newer families: their groups and sizes.

`original` is the name that ComfyUI's encoder has below `text_encoders.<name>.transformer`, `diffusers` the name in
transformers. They differ in the beginning alone: ComfyUI keeps language models under `model` and BERT under `bert`.

Names and shapes: the models' parameter lists for CLIP, T5, UMT5, Gemma 2 2B, Qwen3 0.6B and Qwen3 4B; the published
configurations for BERT, Qwen3 8B, Qwen2.5-VL 7B, Llama 3.1 8B and Mistral Small 3.
"""

from __future__ import annotations

from ..model import Group, Row
from .blocks import CLIP_ENDS, CLIP_LAYER

# CLIP ----------------------------------------------------------------------------------------------------------------

CLIP_PROJECTION = (Row("text_projection", "text_projection", ("width", "width")),)

CLIP_L = (
    Group("text_model", "text_model", CLIP_ENDS),
    Group("text_model.encoder.layers.{0-11}", "text_model.encoder.layers.{0-11}", CLIP_LAYER),
)
CLIP_L_PROJECTED = (*CLIP_L, Group("", "", CLIP_PROJECTION))  # where the pooled output is used: SD 3, HiDream
CLIP_L_SIZES = {"width": 768}

CLIP_G = (
    Group("text_model", "text_model", CLIP_ENDS),
    Group("text_model.encoder.layers.{0-31}", "text_model.encoder.layers.{0-31}", CLIP_LAYER),
    Group("", "", CLIP_PROJECTION),
)
CLIP_G_SIZES = {"width": 1280}

# T5 ------------------------------------------------------------------------------------------------------------------

T5_ENDS = (
    Row("shared", "shared", ("vocabulary", "width")),
    Row("encoder.embed_tokens", "encoder.embed_tokens", ("vocabulary", "width")),  # the same weight as `shared`
    Row("encoder.final_layer_norm", "encoder.final_layer_norm", ("width",)),
)
T5_BLOCK = (
    Row("layer.0.SelfAttention.q", "layer.0.SelfAttention.q", ("inner", "width")),
    Row("layer.0.SelfAttention.k", "layer.0.SelfAttention.k", ("inner", "width")),
    Row("layer.0.SelfAttention.v", "layer.0.SelfAttention.v", ("inner", "width")),
    Row("layer.0.SelfAttention.o", "layer.0.SelfAttention.o", ("width", "inner")),
    Row("layer.0.layer_norm", "layer.0.layer_norm", ("width",)),
    Row("layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_0", ("mlp", "width")),
    Row("layer.1.DenseReluDense.wi_1", "layer.1.DenseReluDense.wi_1", ("mlp", "width")),
    Row("layer.1.DenseReluDense.wo", "layer.1.DenseReluDense.wo", ("width", "mlp")),
    Row("layer.1.layer_norm", "layer.1.layer_norm", ("width",)),
)
T5_POSITIONS = (
    Row(
        "layer.0.SelfAttention.relative_attention_bias",
        "layer.0.SelfAttention.relative_attention_bias",
        (32, "heads"),
    ),
)

T5XXL = (
    Group("", "", T5_ENDS),
    Group("encoder.block.{0-23}", "encoder.block.{0-23}", T5_BLOCK),
    Group("encoder.block.0", "encoder.block.0", T5_POSITIONS),  # T5's later blocks use the first one's
)
T5XXL_SIZES = {"width": 4096, "inner": 4096, "mlp": 10240, "heads": 64, "vocabulary": 32128}

UMT5XXL = (
    Group("", "", T5_ENDS),
    Group("encoder.block.{0-23}", "encoder.block.{0-23}", T5_BLOCK),
    Group("encoder.block.{0-23}", "encoder.block.{0-23}", T5_POSITIONS),
)
UMT5XXL_SIZES = {"width": 4096, "inner": 4096, "mlp": 10240, "heads": 64, "vocabulary": 256384}

# BERT ----------------------------------------------------------------------------------------------------------------

BERT_ENDS = (
    Row("word_embeddings", "word_embeddings", ("vocabulary", "width")),
    Row("position_embeddings", "position_embeddings", (512, "width")),
    Row("token_type_embeddings", "token_type_embeddings", (2, "width")),
    Row("LayerNorm", "LayerNorm", ("width",)),
)
BERT_LAYER = (
    Row("attention.self.query", "attention.self.query", ("width", "width")),
    Row("attention.self.key", "attention.self.key", ("width", "width")),
    Row("attention.self.value", "attention.self.value", ("width", "width")),
    Row("attention.output.dense", "attention.output.dense", ("width", "width")),
    Row("attention.output.LayerNorm", "attention.output.LayerNorm", ("width",)),
    Row("intermediate.dense", "intermediate.dense", ("4*width", "width")),
    Row("output.dense", "output.dense", ("width", "4*width")),
    Row("output.LayerNorm", "output.LayerNorm", ("width",)),
)

HYDIT_CLIP = (  # Hunyuan-DiT's "CLIP" is a Chinese BERT
    Group("bert.embeddings", "embeddings", BERT_ENDS),
    Group("bert.encoder.layer.{0-23}", "encoder.layer.{0-23}", BERT_LAYER),
)
HYDIT_CLIP_SIZES = {"width": 1024, "vocabulary": 47020}

# Language models -----------------------------------------------------------------------------------------------------

DECODER_ENDS = (
    Row("embed_tokens", "embed_tokens", ("vocabulary", "width")),
    Row("norm", "norm", ("width",)),
)
DECODER_LAYER = (
    Row("self_attn.q_proj", "self_attn.q_proj", ("queries", "width")),
    Row("self_attn.k_proj", "self_attn.k_proj", ("keys", "width")),
    Row("self_attn.v_proj", "self_attn.v_proj", ("keys", "width")),
    Row("self_attn.o_proj", "self_attn.o_proj", ("width", "queries")),
    Row("mlp.gate_proj", "mlp.gate_proj", ("mlp", "width")),
    Row("mlp.up_proj", "mlp.up_proj", ("mlp", "width")),
    Row("mlp.down_proj", "mlp.down_proj", ("width", "mlp")),
    Row("input_layernorm", "input_layernorm", ("width",)),
    Row("post_attention_layernorm", "post_attention_layernorm", ("width",)),
)
QWEN3_LAYER = (
    *DECODER_LAYER,
    Row("self_attn.q_norm", "self_attn.q_norm", (128,)),
    Row("self_attn.k_norm", "self_attn.k_norm", (128,)),
)
GEMMA2_LAYER = (
    *DECODER_LAYER,
    Row("pre_feedforward_layernorm", "pre_feedforward_layernorm", ("width",)),
    Row("post_feedforward_layernorm", "post_feedforward_layernorm", ("width",)),
)

GEMMA2_2B = (Group("model", "", DECODER_ENDS), Group("model.layers.{0-25}", "layers.{0-25}", GEMMA2_LAYER))
GEMMA2_2B_SIZES = {"width": 2304, "queries": 2048, "keys": 1024, "mlp": 9216, "vocabulary": 256000}

QWEN3_06B = (Group("model", "", DECODER_ENDS), Group("model.layers.{0-27}", "layers.{0-27}", QWEN3_LAYER))
QWEN3_06B_SIZES = {"width": 1024, "queries": 2048, "keys": 1024, "mlp": 3072, "vocabulary": 151936}

QWEN3_4B = (Group("model", "", DECODER_ENDS), Group("model.layers.{0-35}", "layers.{0-35}", QWEN3_LAYER))
QWEN3_4B_SIZES = {"width": 2560, "queries": 4096, "keys": 1024, "mlp": 9728, "vocabulary": 151936}

QWEN3_8B = QWEN3_4B
QWEN3_8B_SIZES = {"width": 4096, "queries": 4096, "keys": 1024, "mlp": 12288, "vocabulary": 151936}

QWEN25_7B = (Group("model", "", DECODER_ENDS), Group("model.layers.{0-27}", "layers.{0-27}", DECODER_LAYER))
QWEN25_7B_SIZES = {"width": 3584, "queries": 3584, "keys": 512, "mlp": 18944, "vocabulary": 152064}

LLAMA31_8B = (Group("model", "", DECODER_ENDS), Group("model.layers.{0-31}", "layers.{0-31}", DECODER_LAYER))
LLAMA31_8B_SIZES = {"width": 4096, "queries": 4096, "keys": 1024, "mlp": 14336, "vocabulary": 128256}
LLAVA_LLAMA3_8B_SIZES = {**LLAMA31_8B_SIZES, "vocabulary": 128320}  # HunyuanVideo's: Llama 3 out of LLaVA

MISTRAL3_24B = (Group("model", "", DECODER_ENDS), Group("model.layers.{0-39}", "layers.{0-39}", DECODER_LAYER))
MISTRAL3_24B_SIZES = {"width": 5120, "queries": 4096, "keys": 1024, "mlp": 32768, "vocabulary": 131072}
