"""Words of the tables about hosts: families, components and sentences that several hosts share."""

from __future__ import annotations

from .host_model import Caution, Fact

UNETS = ("sd15", "sd21", "sdxl", "sdxl-refiner")
SD3 = ("sd3-medium", "sd35-medium", "sd35-large")
FLUX2 = ("flux2-dev", "flux2-klein4b", "flux2-klein9b")
FLUXES = ("flux", *FLUX2, "chroma", "longcat-image", "ovis-image")
WAN = ("wan21-14b-t2v", "wan21-14b-i2v", "wan21-1.3b-t2v", "wan22-5b", "skyreels-v2")
HUNYUAN = ("hunyuan-video", "hunyuan-video15")
ERNIE = ("ernie-image", "ernie-image-8b")

CLIPS = ("clip_l", "clip_g", "clip_h")
T5 = ("t5xxl", "umt5xxl")
LANGUAGE = ("gemma2_2b", "mistral3_24b", "qwen25_7b", "qwen3_06b", "qwen3_2b", "qwen3_4b", "qwen3_8b")
PARTS = ("denoiser", "llm_adapter", "connectors", "text_projection")  # of the diffusion model; the rest encodes text
ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")
CLIP_MATRICES = (".q_proj", ".k_proj", ".v_proj", ".out_proj", ".mlp.fc1", ".mlp.fc2")

OWN = ("original", "same")
THEIRS = ("diffusers", "same")
KOHYA = ("kohya",)
DOTTED = ("diffusers", "comfy", "peft", "bare")

RECOGNISED = {  # files that a host knows by some of their keys: mark -> those keys
    "bfl-control": ("img_in.lora_A.weight", "single_blocks.0.norm.key_norm.scale"),
    "wan-fun": ("lora_unet__blocks_0_cross_attn_k.lora_down.weight",),
    "uso": (
        "single_blocks.37.processor.qkv_lora.up.weight",
        "double_blocks.18.processor.qkv_lora2.up.weight",
    ),
}

FLAT_CLIP = "it does not know text encoder names without 'text_model'"
STRANGE_PREFIX = "its keys begin with words it does not know"
ADAPTER_NAME = "it does not know an adapter's name inside keys (lora_A.NAME.weight)"
NOT_PROCESSOR = "of attention it knows only the old Diffusers names (attn1.processor.to_q), not attn1.to_q"
NOT_DIFFUSERS = "it does not know the Diffusers names of this family"
BLOCKS_ONLY = "of this family's Diffusers names it knows only those inside the blocks"
NOT_THERE = "its model has no such layer"
NOT_THIS_ENCODER = "it does not know these names of the text encoder"
ZERO_MODULES = "it counts keys with dots (Diffusers, PEFT, ComfyUI) as loaded, with 0 modules and no effect"
INCOMPLETE = "some of its layers lack a part"
HIDDEN = (
    "but takes it for an SD 1 LoRA and hides it with SDXL: its header lacks ss_base_model_version (convert writes it)"
)

POSITIONAL = Fact(False, "it cannot read layers that are only numbered", prefixes=("positional",))
WEAKER = Caution(
    "scale-in-header",
    "but at the wrong strength: it ignores the scale {scale:g} in the header (set the strength to {scale:g} there)",
)
SCALAR = Caution("scalar", "but at the wrong strength: it ignores the layers' scalar", unread=True)
OUTPUT_DORA = Caution(
    "output-magnitude",
    "but not as trained: where DoRA's magnitudes lie along the output, it divides by the norm of the unchanged weight",
)
PLAIN_DORA = Caution(
    "magnitude-vector", "but as if it were a plain LoRA: it drops DoRA's lora_magnitude_vector", unread=True
)
