"""Small models of every family for the trainer's tests: pipelines of diffusers' own classes with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from train_models import WORDS, in_original_layout, open_clip_names, tiny_pipeline, vae_in_original_layout

from lorasmith.lora_core.train.tokenizers import write_vocabulary

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
WIDTH = 32  # of long text encoders


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Draw weights from a seed, and leave the global generator as it was."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    yield
    torch.random.set_rng_state(state)


def clip_tokenizer(folder: Path) -> Any:
    """Return CLIP's tokenizer over single letters."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    write_vocabulary(folder, [])
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=77)


def word_tokenizer() -> Any:
    """Return a tokenizer of single words with an end mark and a chat template, for T5 and language models."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = ["<pad>", "</s>", "<unk>", *LETTERS, "cat", "dog", "red", "blue"]
    words = {word: place for place, word in enumerate(known)}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=CHAT, padding_side="right", **marks)


def clip(projected: bool = False, width: int = 16) -> Any:
    """Return a CLIP of two layers."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    shape: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "projection_dim": width, "bos_token_id": WORDS - 2, "eos_token_id": WORDS - 1}
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(CLIPTextConfig(**shape, pad_token_id=1))


def t5(kind: str = "T5") -> Any:
    """Return a T5 encoder of two layers."""
    import transformers

    shape: dict[str, Any] = {"vocab_size": 64, "d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    config = getattr(transformers, f"{kind}Config")(**shape, feed_forward_proj="gated-gelu")
    return getattr(transformers, f"{kind}EncoderModel")(config).eval()


def vae(latents: int = 4, shift: float | None = 0.1) -> Any:
    """Return an autoencoder that shrinks eightfold."""
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    shape: dict[str, Any] = {"block_out_channels": (8,) * 4, "norm_num_groups": 4, "layers_per_block": 1}
    return AutoencoderKL(latent_channels=latents, **shape, **blocks, scaling_factor=0.7, shift_factor=shift).eval()


def flow_scheduler(**more: Any) -> Any:
    """Return the scheduler that most flow models come with."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **more})


def unet(folder: Path, kind: str) -> Any:
    """Return Stable Diffusion 1.x's, 2.x's (v) or XL's layout."""
    import diffusers
    import transformers

    prediction = "v_prediction" if kind == "sd21" else "epsilon"
    parts = tiny_pipeline(folder / "parts", sdxl=kind == "sdxl", prediction=prediction, v2=kind == "sd21")
    classes: dict[str, Any] = {"vae": diffusers.AutoencoderKL, "text_encoder": transformers.CLIPTextModel}
    classes |= {"text_encoder_2": transformers.CLIPTextModelWithProjection} if kind == "sdxl" else {}
    classes |= {"unet": diffusers.UNet2DConditionModel, "scheduler": diffusers.DDPMScheduler}
    given = {name: made.from_pretrained(parts / name) for name, made in classes.items()}
    given |= {
        name.replace("text_encoder", "tokenizer"): clip_tokenizer(folder / "words")
        for name in classes
        if "text" in name
    }
    if kind == "sdxl":
        return diffusers.StableDiffusionXLPipeline(**given)
    return diffusers.StableDiffusionPipeline(
        **given, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def sd3(folder: Path, t5_there: bool = True) -> Any:
    """Return Stable Diffusion 3.5 medium's layout: a second attention in one block, normalized queries."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    shape: dict[str, Any] = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 2}
    shape |= {"attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16}
    shape |= {"joint_attention_dim": WIDTH, "pooled_projection_dim": 32, "pos_embed_max_size": 8}
    return StableDiffusion3Pipeline(
        SD3Transformer2DModel(**shape, dual_attention_layers=(0,), qk_norm="rms_norm"),
        flow_scheduler(),
        vae(),
        clip(projected=True),
        clip_tokenizer(folder / "words"),
        clip(projected=True),
        clip_tokenizer(folder / "words"),
        t5() if t5_there else None,
        word_tokenizer() if t5_there else None,
    )


def flux(folder: Path, guidance: bool = True) -> Any:
    """Return FLUX.1 dev's layout, or schnell's without guidance."""
    from diffusers import FluxPipeline, FluxTransformer2DModel

    shape: dict[str, Any] = {"in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 8}
    shape |= {"num_attention_heads": 2, "joint_attention_dim": WIDTH, "pooled_projection_dim": 16}
    transformer = FluxTransformer2DModel(**shape, guidance_embeds=guidance, axes_dims_rope=(2, 2, 4))
    scheduler = flow_scheduler(use_dynamic_shifting=True)
    return FluxPipeline(scheduler, vae(), clip(), clip_tokenizer(folder / "words"), t5(), word_tokenizer(), transformer)


def chroma(folder: Path) -> Any:
    """Return Chroma's layout."""
    from diffusers import ChromaPipeline, ChromaTransformer2DModel

    shape: dict[str, Any] = {"in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 8}
    shape |= {"num_attention_heads": 2, "joint_attention_dim": WIDTH, "axes_dims_rope": (2, 2, 4)}
    shape |= {"approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1}
    return ChromaPipeline(flow_scheduler(), vae(), t5(), word_tokenizer(), ChromaTransformer2DModel(**shape))


def qwen3(layers: int) -> Any:
    """Return Qwen3 of some layers."""
    from transformers import Qwen3Config, Qwen3Model

    shape: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": layers}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    return Qwen3Model(Qwen3Config(**shape)).eval()


def gemma2() -> Any:
    """Return Gemma 2 of two layers."""
    from transformers import Gemma2Config, Gemma2Model

    shape: dict[str, Any] = {"vocab_size": 64, "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    return Gemma2Model(Gemma2Config(**shape)).eval()


def flux2(folder: Path) -> Any:
    """Return FLUX.2 klein's layout; its autoencoder's running statistics are not the fresh ones."""
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    shape: dict[str, Any] = {"block_out_channels": (8,) * 4, "norm_num_groups": 4, "layers_per_block": 1}
    autoencoder = AutoencoderKLFlux2(latent_channels=4, **shape, **blocks).eval()
    autoencoder.bn.running_mean.normal_(std=0.3)
    autoencoder.bn.running_var.uniform_(0.2, 2)
    shape = {"in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16}
    shape |= {"num_attention_heads": 2, "joint_attention_dim": 48, "axes_dims_rope": (4, 4, 4, 4)}
    transformer = Flux2Transformer2DModel(**shape, timestep_guidance_channels=16, guidance_embeds=False)
    return Flux2KleinPipeline(flow_scheduler(), autoencoder, qwen3(28), word_tokenizer(), transformer)


def z_image(folder: Path) -> Any:
    """Return Z-Image's layout."""
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    shape: dict[str, Any] = {"in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2}
    shape |= {"n_kv_heads": 2, "cap_feat_dim": 16, "axes_dims": [4, 6, 6], "axes_lens": [1024, 32, 32]}
    return ZImagePipeline(flow_scheduler(), vae(), qwen3(3), word_tokenizer(), ZImageTransformer2DModel(**shape))


VIDEO: dict[str, Any] = {  # an autoencoder's shape: eight times smaller, four times shorter
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    "latents_mean": [0.1, -0.2, 0.3, 0.0],
    "latents_std": [0.5, 2.0, 1.5, 0.8],
}


def qwen_image(folder: Path) -> Any:
    """Return Qwen-Image's layout."""
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text: dict[str, Any] = {"vocab_size": 64, "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    text |= {"rope_parameters": {"type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3]}}
    sight = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    marks = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=sight, **marks))
    shape: dict[str, Any] = {"in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16}
    shape |= {"num_attention_heads": 2, "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 6, 6)}
    return QwenImagePipeline(
        flow_scheduler(use_dynamic_shifting=True),
        AutoencoderKLQwenImage(**VIDEO).eval(),
        encoder.eval(),
        word_tokenizer(),
        QwenImageTransformer2DModel(**shape),
    )


def lumina2(folder: Path) -> Any:
    """Return Lumina 2's layout."""
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    shape: dict[str, Any] = {"sample_size": 8, "in_channels": 4, "hidden_size": 32, "num_layers": 2}
    shape |= {"num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 16}
    shape |= {"axes_dim_rope": (4, 6, 6), "axes_lens": (300, 32, 32), "cap_feat_dim": WIDTH}
    return Lumina2Pipeline(Lumina2Transformer2DModel(**shape), flow_scheduler(), vae(), gemma2(), word_tokenizer())


def sana(folder: Path) -> Any:
    """Return Sana's layout: an autoencoder that shrinks 32 times."""
    from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel

    layers: dict[str, Any] = {f"{side}_block_out_channels": (8,) * 6 for side in ("encoder", "decoder")}
    layers |= {f"{side}_layers_per_block": (1,) * 6 for side in ("encoder", "decoder")}
    layers |= {f"{side}_qkv_multiscales": ((),) * 6 for side in ("encoder", "decoder")}
    autoencoder = AutoencoderDC(latent_channels=4, attention_head_dim=8, scaling_factor=0.41407, **layers).eval()
    shape: dict[str, Any] = {"in_channels": 4, "out_channels": 4, "num_layers": 2, "caption_channels": WIDTH}
    shape |= {"num_attention_heads": 2, "attention_head_dim": 8, "num_cross_attention_heads": 2}
    shape |= {"cross_attention_head_dim": 8, "cross_attention_dim": 16, "sample_size": 2}
    return SanaPipeline(word_tokenizer(), gemma2(), autoencoder, SanaTransformer2DModel(**shape), flow_scheduler())


def pixart(folder: Path) -> Any:
    """Return PixArt-Sigma's layout, which predicts a variance too."""
    from diffusers import DDPMScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    shape: dict[str, Any] = {"sample_size": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2}
    shape |= {"num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": WIDTH}
    transformer = PixArtTransformer2DModel(**shape, use_additional_conditions=False)
    return PixArtSigmaPipeline(word_tokenizer(), t5(), vae(shift=None), transformer, DDPMScheduler())


def wan(folder: Path, channels: int = 4) -> Any:
    """Return Wan 2.1's layout; 48 channels are those of Wan 2.2 5B, whose autoencoder shrinks sixteenfold."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    shape: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": channels,
        "out_channels": channels,
    }
    shape |= {"text_dim": WIDTH, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32}
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    layers = dict(VIDEO)
    if channels == 48:
        layers |= {"z_dim": 48, "latents_mean": [0.1] * 48, "latents_std": [0.5, 2.0] * 24, "decoder_base_dim": 8}
        layers |= {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12}
        layers |= {"scale_factor_spatial": 16, "num_res_blocks": 1}
    autoencoder = AutoencoderKLWan(**layers).eval()
    return WanPipeline(
        word_tokenizer(),
        t5("UMT5"),
        autoencoder,
        scheduler,
        WanTransformer3DModel(**shape),
        expand_timesteps=channels == 48,
    )


MAKERS: Mapping[str, Callable[[Path], Any]] = {
    **{kind: partial(unet, kind=kind) for kind in ("sd15", "sd21", "sdxl")},
    "sd3": sd3,
    "flux": flux,
    "flux2": flux2,
    "chroma": chroma,
    "z_image": z_image,
    "qwen_image": qwen_image,
    "lumina2": lumina2,
    "sana": sana,
    "pixart": pixart,
    "wan": wan,
}


def write_pipeline(family: str, folder: Path, **options: Any) -> Path:
    """Write a family's small pipeline in diffusers' layout; every weight random, none zero."""
    with seeded():
        pipeline = MAKERS[family](folder, **options)
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                for parameter in part.parameters():
                    if not parameter.any():
                        torch.nn.init.normal_(parameter, std=0.1)
    pipeline.save_pretrained(folder)
    return folder


_XL_UNET = {
    **{"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"},
    **{"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"},
    **{"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"},
    **{"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"},
    **{"mid_block.resnets.1": "middle_block.2"},
    **{f"down_blocks.{i}.resnets.{j}": f"input_blocks.{3 * i + j + 1}.0" for i in range(3) for j in range(2)},
    **{f"down_blocks.{i}.attentions.{j}": f"input_blocks.{3 * i + j + 1}.1" for i in (1, 2) for j in range(2)},
    **{f"down_blocks.{i}.downsamplers.0.conv": f"input_blocks.{3 * i + 3}.0.op" for i in range(2)},
    **{f"up_blocks.{i}.resnets.{j}": f"output_blocks.{3 * i + j}.0" for i in range(3) for j in range(3)},
    **{f"up_blocks.{i}.attentions.{j}": f"output_blocks.{3 * i + j}.1" for i in range(2) for j in range(3)},
    **{f"up_blocks.{i}.upsamplers.0.conv": f"output_blocks.{3 * i + 2}.2.conv" for i in range(2)},
}


def sdxl_checkpoint(pipeline: Path, file: Path) -> Path:
    """Write an SDXL pipeline as one file in the original layout, OpenCLIP's encoder with its transposed projection."""
    found = dict(in_original_layout(pipeline, _XL_UNET)) | dict(vae_in_original_layout(pipeline))
    first, second = (load_file(pipeline / f"text_encoder{ending}/model.safetensors") for ending in ("", "_2"))
    lead = "conditioner.embedders.0.transformer.text_model."
    found |= {lead + key.removeprefix("text_model."): tensor for key, tensor in first.items()}
    inner = {key.removeprefix("text_model."): tensor for key, tensor in second.items()}
    projection = inner.pop("text_projection.weight")
    named = open_clip_names({key: tensor for key, tensor in inner.items() if not key.endswith("position_ids")})
    named = {key.removeprefix("cond_stage_model.model."): tensor for key, tensor in named.items()}
    named |= {"text_projection": projection.t(), "logit_scale": torch.ones(())}
    found |= {f"conditioner.embedders.1.model.{key}": tensor for key, tensor in named.items()}
    save_file({key: tensor.contiguous().clone() for key, tensor in found.items()}, file)
    return file
