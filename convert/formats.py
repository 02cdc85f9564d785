"""Every key dialect as a row. Order breaks no tie: a file that several rows explain decodes alike with each of them."""

from __future__ import annotations

from .model import Format, Naming

# Namings that every family has, beside its own and the two layouts.
NAMINGS: tuple[Naming, ...] = (
    Naming(  # Diffusers 0.12-0.21: the layers belonged to the attention processor; 0.17 named CLIP's so too
        "attn-processor",
        of="diffusers",
        endings=(
            (".to_q", ".processor.to_q_lora"),
            (".to_k", ".processor.to_k_lora"),
            (".to_v", ".processor.to_v_lora"),
            (".to_out.0", ".processor.to_out_lora"),
            (".q_proj", ".to_q_lora"),
            (".k_proj", ".to_k_lora"),
            (".v_proj", ".to_v_lora"),
            (".out_proj", ".to_out_lora"),
        ),
        suffixes=("processor",),
    ),
    Naming(  # Custom Diffusion saves whole weights of the attention to the text
        "custom-diffusion",
        of="diffusers",
        endings=(
            (".attn2.to_q", ".attn2.processor.to_q_custom_diffusion"),
            (".attn2.to_k", ".attn2.processor.to_k_custom_diffusion"),
            (".attn2.to_v", ".attn2.processor.to_v_custom_diffusion"),
            (".attn2.to_out.0", ".attn2.processor.to_out_custom_diffusion.0"),
        ),
        suffixes=("custom-diffusion",),
    ),
    Naming(  # transformers >= 5.6 has no text_model level in CLIPTextModel
        "flat-clip",
        of="diffusers",
        beginning=("text_model.", ""),
    ),
)

LYCORIS = ("lora", "loha", "lokr", "dora", "full", "norm", "oft", "boft", "glora", "ia3", "value")

FORMATS: tuple[Format, ...] = (
    Format(
        "kohya",
        "kohya / A1111 (lora_unet_, lora_te_)",
        prefixes=("kohya",),
        namings=("family", "original", "diffusers", "flat-clip"),
        suffixes=("up-down", "ia3"),
        kinds=(*LYCORIS, "tucker", "oft_v2"),
        writable=True,
    ),
    Format(
        "diffusers",
        "Diffusers 0.22 and later (unet., transformer., text_encoder.)",
        prefixes=("diffusers",),
        namings=("diffusers", "flat-clip"),
        suffixes=("A-B", "lora.down", "lora_linear_layer", "A-B-named", "A-B-bare"),
        alpha="folded",
        kinds=("lora", "dora", "bias"),
        module_shape=True,
        writable=True,
    ),
    Format(
        "diffusers-attn-processor",
        "Diffusers 0.12 to 0.21 (attention processors)",
        prefixes=("bare", "diffusers"),
        namings=("attn-processor", "diffusers", "flat-clip"),
        suffixes=("processor", "lora_linear_layer"),
        alpha="folded",
    ),
    Format(
        "peft",
        "PEFT adapter_model (base_model.model.)",
        prefixes=("peft",),
        namings=("diffusers", "original", "flat-clip"),
        suffixes=("A-B", "A-B-named", "A-B-bare", "embedding", "peft"),
        alpha="config",
        kinds=("lora", "dora", "bias"),
        module_shape=True,
        writable=True,
    ),
    Format(
        "comfy",
        "ComfyUI generic names (diffusion_model., text_encoders.)",
        prefixes=("comfy",),
        namings=("original", "diffusers", "flat-clip"),
        suffixes=("up-down", "A-B", "A-B-named", "A-B-bare", "lora.down", "norm-scale"),
        kinds=(*LYCORIS, "tucker", "oft_v2"),
        writable=True,
    ),
    Format(
        "onetrainer",
        "OneTrainer's own (lora_transformer_, lora_prior_unet_, or, later, transformer. with alphas)",
        prefixes=("onetrainer", "kohya", "diffusers"),
        namings=("diffusers", "original"),
        suffixes=("up-down",),
        kinds=("lora", "dora", "loha", "lokr", "oft_v2"),
        writable=True,
    ),
    Format(
        "ai-toolkit",
        "ai-toolkit (lora_A and lora_B without alpha, in the family's own naming)",
        prefixes=("aitoolkit",),
        namings=("aitoolkit",),
        suffixes=("A-B",),
        alpha="folded",
        kinds=("lora", "lokr"),
        writable=True,
    ),
    Format(
        "omi",
        "OMI (unet. or transformer. with the original names)",
        prefixes=("diffusers",),
        namings=("original",),
        suffixes=("up-down", "A-B", "A-B-named"),
    ),
    Format(
        "kohya-oft",
        "kohya's OFT (oft_unet_)",
        prefixes=("oft",),
        namings=("family", "original", "diffusers"),
        suffixes=(),
        kinds=("oft_kohya",),
        writable=True,
    ),
    Format(
        "original",
        "original names without a prefix",
        prefixes=("bare", "comfy"),  # text encoders have one
        namings=("original",),
        suffixes=("A-B", "up-down", "A-B-named", "A-B-bare", "norm-scale"),
        kinds=(*LYCORIS, "oft_v2"),  # lora_A and lora_B have no word for a Tucker core
        writable=True,
    ),
    Format(
        "diffusers-bare",
        "Diffusers names without a prefix",
        prefixes=("bare",),
        namings=("diffusers",),
        suffixes=("A-B", "up-down", "lora.down", "A-B-named", "A-B-bare"),
        alpha="folded",
    ),
    Format("xlabs", "XLabs and USO (processor names)", ("bare",), ("xlabs",), ("processor",), alpha="folded"),
    Format(
        "custom-diffusion",
        "Custom Diffusion (whole weights of attention processors)",
        prefixes=("bare", "diffusers"),
        namings=("custom-diffusion",),
        suffixes=("custom-diffusion",),
    ),
    Format("control-lora", "Stability's Control-LoRA (.up, .down)", ("control",), ("original",), ("control",)),
    Format(
        "safeloras",
        "numbered layers (cloneofsimo's safeloras and lists, Stability's for Stable Cascade)",
        prefixes=("positional",),
        namings=("positional",),
        suffixes=("positional",),
        alpha="folded",
    ),
)
WRITABLE = tuple(format.id for format in FORMATS if format.writable)


def format_named(id: str) -> Format:
    """Return the dialect of that id.

    Raises:
        KeyError: there is no such dialect.
    """
    for format in FORMATS:
        if format.id == id:
            return format
    raise KeyError(f"no format {id!r}; known: {', '.join(format.id for format in FORMATS)}")
