"""What Diffusers 0.42 does: seen in runs of its pipelines' load_lora_weights on files of each family and dialect."""

from __future__ import annotations

from .host_model import Caution, Fact, Host
from .host_words import (
    ADAPTER_NAME,
    CLIPS,
    ERNIE,
    FLAT_CLIP,
    FLUX2,
    INCOMPLETE,
    KOHYA,
    LANGUAGE,
    NOT_THIS_ENCODER,
    OWN,
    PARTS,
    SD3,
    STRANGE_PREFIX,
    T5,
    THEIRS,
    UNETS,
    WAN,
)

NO_LOADER = "its pipelines load no LoRA for this family"
OUTSIDE_WAN = ("text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2", "time_projection.1")
OUTSIDE_FLUX = (
    *("img_in", "txt_in", "final_layer.linear", "final_layer.adaLN_modulation.1", "vector_in.in_layer"),
    *("vector_in.out_layer", "time_in.in_layer", "time_in.out_layer", "guidance_in.in_layer", "guidance_in.out_layer"),
)
OUTSIDE_HUNYUAN = (
    *("final_layer.linear", "final_layer.adaLN_modulation.1", ".adaLN_modulation.1", "input_embedder", "img_in.proj"),
    *("in_layer", "out_layer", "self_attn.qkv", "self_attn.proj", ".mlp.0", ".mlp.2"),
)
RENAMED = ("hidream", "qwen-image", "qwen-image21", "ltx-video", "ltx2", "flux3", *ERNIE)  # after a change of prefix
DIFFUSERS_ALGORITHMS = (
    Fact(True, prefixes=("bare",), namings=OWN, marks=("bfl-control",), families=("flux",)),
    Fact(True, prefixes=("comfy",), marks=("lokr",), families=("z-image",)),
    Fact(
        False,
        "it stops at the 2-D factors of a convolution with a size mismatch",
        marks=("flat-conv",),
        families=UNETS,
        fatal=True,
    ),
    Fact(False, "it stops at a Tucker core (lora_mid)", marks=("tucker",), fatal=True),
    Fact(True, prefixes=("comfy",), marks=("bias",), families=WAN),
    Fact(False, "it drops full differences of weights", marks=("full", "norm"), families=WAN),
    Fact(False, "it stops at norms and full differences", marks=("norm", "bias", "value"), fatal=True),
    Fact(
        False,
        "it loads no layers but LoRA's",
        marks=("loha", "lokr", "oft", "oft_v2", "boft", "glora", "ia3"),
        fatal=True,
    ),
)
DIFFUSERS_SUFFIXES = (
    Fact(True, prefixes=("bare",), suffixes=("A-B-named",), families=("qwen-image", "qwen-image21", "z-image")),
    Fact(False, ADAPTER_NAME, suffixes=("A-B-named",), fatal=True),
    Fact(False, "it does not know lora_A and lora_B without .weight", suffixes=("A-B-bare",)),
    Fact(
        False,
        "it stops at alpha keys beside Diffusers names",
        prefixes=("diffusers",),
        marks=("alpha",),
        fatal=True,
    ),
    Fact(
        False,
        "it stops at lora_down and lora_up below unet. or transformer.",
        prefixes=("diffusers",),
        suffixes=("up-down",),
        fatal=True,
    ),
    Fact(
        False,
        "it stops at lora_linear_layer below unet. or transformer., which it knows in text encoders only",
        prefixes=("diffusers",),
        suffixes=("lora_linear_layer",),
        components=PARTS,
        fatal=True,
    ),
)
DIFFUSERS_ENCODERS = (
    Fact(False, FLAT_CLIP + " in kohya keys", prefixes=KOHYA, namings=("flat-clip",)),
    Fact(
        False,
        "its pipelines load no LoRA into this text encoder",
        components=(*T5, *LANGUAGE, "hydit_clip", "llama"),
    ),
    Fact(
        False,
        "its pipelines load no LoRA into this text encoder",
        components=CLIPS,
        families=("hunyuan-video", "hidream", "kandinsky5", "sdxl-refiner"),
    ),
    Fact(
        True,
        prefixes=("diffusers",),
        components=CLIPS,
        families=(*UNETS, *SD3, "flux"),
    ),
    Fact(True, prefix=("lora_te", "lora_te1", "lora_te2"), components=CLIPS, families=(*UNETS,)),
    Fact(True, prefix=("lora_te1",), components=("clip_l",), families=("flux",)),
    Fact(False, NOT_THIS_ENCODER, components=CLIPS),
)
DIFFUSERS_UNETS = (
    Fact(
        False,
        "it takes add_embedding for another module",
        prefix=("lora_unet",),
        namings=("diffusers",),
        families=("sdxl", "sdxl-refiner"),
        modules=("add_embedding.linear_1", "add_embedding.linear_2"),
    ),
    Fact(True, prefix=("lora_unet",), families=("sdxl",)),
    Fact(
        False,
        "it knows the original block names (input_blocks) for SDXL only",
        prefix=("lora_unet",),
        namings=("original",),
        families=UNETS,
    ),
    Fact(True, prefix=("lora_unet",), families=UNETS),
    Fact(False, "it does not know lycoris_ in front of a name", prefix=("lycoris",), families=UNETS, fatal=True),
    Fact(
        False,
        "below unet. it knows only its own names, not the original ones",
        prefixes=("diffusers",),
        namings=("original",),
        families=UNETS,
    ),
    Fact(True, prefixes=("diffusers",), families=UNETS),
    Fact(
        False,
        "it wants 'unet.' in front of attention processors' names",
        prefixes=("bare",),
        namings=("attn-processor",),
    ),
)
DIFFUSERS_KOHYA = (
    Fact(
        False,
        "it stops at the layers of distilled_guidance_layer",
        prefix=("lora_unet", "diffusion_model"),
        families=("chroma",),
        suffixes=("up-down",),
        modules=tuple(
            f"distilled_guidance_layer.{name}"
            for name in ("in_proj", "out_proj", *(f"layers.{n}.{end}_layer" for n in range(5) for end in ("in", "out")))
        ),
        fatal=True,
    ),
    Fact(
        False,
        "it drops the layers outside the blocks",
        prefix=("lora_unet", "diffusion_model"),
        families=("flux", "chroma"),
        modules=OUTSIDE_FLUX,
    ),
    Fact(
        True,
        prefix=("lora_unet", "diffusion_model"),
        namings=OWN,
        suffixes=("up-down",),
        families=("flux", "chroma"),
    ),
    Fact(
        False,
        "of OneTrainer's own names it knows those of attention and of what is outside the blocks; at others it stops",
        prefix=("lora_transformer",),
        families=("flux",),
        modules=(".linear", ".ff.net.0.proj", ".ff.net.2", "_context.net.0.proj", "_context.net.2", "_mlp"),
        fatal=True,
    ),
    Fact(True, prefix=("lora_transformer",), namings=("diffusers",), suffixes=("up-down",), families=("flux",)),
    Fact(
        False,
        "it drops the modulation and the final layer's",
        prefix=("lora_unet",),
        families=FLUX2,
        modules=("adaLN_modulation.1", "stream_modulation_img.lin", "stream_modulation_txt.lin", "modulation.lin"),
    ),
    Fact(True, prefix=("lora_unet",), namings=OWN, suffixes=("up-down",), families=FLUX2),
    Fact(
        False,
        "it stops at the layers outside the blocks",
        prefix=("lora_unet",),
        families=WAN,
        modules=(*OUTSIDE_WAN, "head.head", "img_emb.proj.1", "img_emb.proj.3"),
        fatal=True,
    ),
    Fact(True, prefix=("lora_unet",), namings=OWN, suffixes=("up-down",), families=WAN),
    Fact(True, prefix=("lora_unet",), namings=("same",), families=("qwen-image",)),
    Fact(
        False,
        "it stops at the layers outside the blocks",
        prefix=("lora_unet",),
        families=("z-image",),
        modules=("x_embedder", "x_embedder.2-1", "final_layer.linear", "final_layer.adaLN_modulation.1"),
        fatal=True,
    ),
    Fact(True, prefix=("lora_unet",), families=("z-image",)),
    Fact(True, prefix=("lora_unet",), namings=OWN, families=("minimax-h3",)),
    Fact(
        False,
        "it stops at kohya's keys of this family",
        prefix=("lora_unet",),
        families=("hunyuan-video", "qwen-image21"),
        fatal=True,
    ),
    Fact(False, "it does not know kohya's names of this family", prefixes=("kohya", "onetrainer")),
)
DIFFUSERS_DOTTED = (
    Fact(
        False,
        "it stops at alpha keys of this family",
        prefixes=("comfy", "peft", "bare"),
        marks=("alpha",),
        families=(
            *(*FLUX2, *SD3, "hidream", "ltx-video", "ltx2", "anima", "krea2", "ideogram4", "lumina2", "flux3", *ERNIE),
            *("ace-step", "hunyuan-video", "auraflow", "mochi", "sana"),
        ),
        fatal=True,
    ),
    Fact(
        False,
        "it stops at the layers outside the blocks",
        prefixes=("comfy",),
        families=WAN,
        marks=("alpha",),
        modules=(*OUTSIDE_WAN, "head.head", "img_emb.proj.1", "img_emb.proj.3"),
        fatal=True,
    ),
    Fact(
        False,
        "it stops at the layers outside the blocks",
        prefixes=("comfy",),
        families=("lumina2",),
        modules=(
            *("x_embedder", "cap_embedder.0", "cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2"),
            *("final_layer.linear", "final_layer.adaLN_modulation.1"),
        ),
        fatal=True,
    ),
    Fact(
        False,
        "it stops at the layers outside the blocks",
        families=("ideogram4",),
        prefixes=("comfy",),
        modules=(
            *("input_proj", "llm_cond_proj", "t_embedding.mlp_in", "t_embedding.mlp_out", "adaln_proj"),
            *("embed_image_indicator", "final_layer.linear", "final_layer.adaln_modulation"),
        ),
        fatal=True,
    ),
    Fact(True, prefixes=("comfy",), families=RENAMED, namings=THEIRS, components=("denoiser", "connectors")),
    Fact(True, prefixes=("comfy",), families=("ltx2",), namings=OWN, components=("denoiser",)),
    Fact(True, prefixes=("peft",), families=ERNIE, namings=THEIRS),
    Fact(True, prefixes=("comfy",), families=("z-image",), namings=THEIRS, components=("denoiser",)),
    Fact(
        True,
        prefixes=("comfy",),
        families=(*FLUX2, *WAN, "anima", "krea2", "ideogram4", "lumina2", "minimax-h3"),
        namings=OWN,
        suffixes=("A-B",),
        components=("denoiser",),
    ),
    Fact(
        True,
        prefixes=("comfy",),
        families=(*WAN, "minimax-h3"),
        namings=OWN,
        suffixes=("up-down",),
        components=("denoiser",),
    ),
    Fact(
        True,
        prefix=("base_model.model",),
        families=(*FLUX2, "krea2"),
        namings=OWN,
        suffixes=("A-B",),
        components=("denoiser",),
    ),
    Fact(True, prefixes=("bare",), families=("minimax-h3",), namings=OWN, components=("denoiser",)),
    Fact(
        True,
        prefixes=("bare",),
        families=("qwen-image", "qwen-image21", "z-image"),
        namings=THEIRS,
        marks=("alpha",),
    ),
    Fact(True, namings=("xlabs",), families=("flux",)),
    Fact(
        False,
        "it stops at base_model.model. in front of this family's names",
        prefixes=("peft",),
        families=("flux", "chroma", "bria-fibo"),
        fatal=True,
    ),
    Fact(
        False,
        "it stops at the layers outside the blocks",
        namings=("tencent", "original"),
        families=("hunyuan-video",),
        modules=OUTSIDE_HUNYUAN,
        fatal=True,
    ),
    Fact(True, namings=("tencent",), families=("hunyuan-video",), suffixes=("A-B",)),
    Fact(True, prefix=("transformer",), namings=("original",), families=("hunyuan-video",), suffixes=("A-B",)),
    Fact(True, prefix=("base_model.model", ""), namings=("decoder",), families=("ace-step",), suffixes=("A-B",)),
    Fact(True, prefixes=("diffusers",), namings=THEIRS, components=("denoiser", "connectors")),
    Fact(True, prefix=("text_conditioner",), families=("anima",), namings=("same",)),
    Fact(
        False,
        "it finds no 'unet.', 'transformer.' or 'text_encoder.' in front of the names",
        prefixes=("bare", "peft", "comfy"),
    ),
    Fact(False, "below transformer. it knows only its own names, not the original ones", prefixes=("diffusers",)),
    Fact(False, STRANGE_PREFIX),
)
DIFFUSERS = Host(
    "diffusers",
    "Diffusers",
    stranger=NO_LOADER,
    families=(
        *(*UNETS, *SD3, "flux", *FLUX2, "chroma", "bria-fibo", *WAN, "hunyuan-video", "framepack", "qwen-image"),
        *("qwen-image21", *ERNIE, "ace-step", "anima", "auraflow", "cogvideox", "cogview4", "cosmos-predict2"),
        *("flux3", "hidream", "ideogram4", "kandinsky5", "krea2", "ltx-video", "ltx2", "lumina2", "minimax-h3"),
        *("mochi", "sana", "z-image"),
    ),
    facts=(
        Fact(False, "it cannot read layers that are only numbered", prefixes=("positional",), fatal=True),
        Fact(
            False,
            "it cannot read whole weights or embeddings of that kind",
            suffixes=("custom-diffusion", "control", "embedding", "peft"),
            fatal=True,
        ),
        Fact(False, "it drops a change of the modulation (diff_m)", marks=("modulation",)),
        Fact(
            False,
            "it stops at the factors of the depth-wise convolutions",
            families=("sana",),
            modules=("conv_depth",),
            fatal=True,
        ),
        *DIFFUSERS_ALGORITHMS,
        *DIFFUSERS_SUFFIXES,
        *DIFFUSERS_ENCODERS,
        *DIFFUSERS_UNETS,
        *DIFFUSERS_KOHYA,
        *DIFFUSERS_DOTTED,
    ),
    cautions=(
        Caution(
            "sgm-and-diffusers",
            "it drops all layers in the original names when there are Diffusers names too",
            loads=False,
            families=("sdxl",),
        ),
        Caution(
            "mixed-attention-alphas",
            "but some layers at the wrong strength: of a kohya file it takes one alpha for all attention layers "
            "('convert --to diffusers' keeps each one's)",
            families=UNETS,
        ),
        Caution("dora-scale", "but as if it were a plain LoRA: it drops DoRA's dora_scale"),
        Caution(
            "kohya-and-others", "it reads kohya keys only in files that hold no others", loads=False, families=UNETS
        ),
        Caution("stray-keys", "it rejects files with further keys, such as a bundled textual inversion's", loads=False),
        Caution("incomplete", f"it rejects the file: {INCOMPLETE}", loads=False),
    ),
)
