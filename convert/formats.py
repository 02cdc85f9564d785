"""Every key dialect as a row. Order breaks no tie: a file that several rows explain decodes alike with each of them."""

from __future__ import annotations

from .model import Format, Suffixes

SUFFIXES: tuple[Suffixes, ...] = (
    Suffixes("up-down", {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}),
    Suffixes("A-B", {"down": "lora_A.weight", "up": "lora_B.weight"}),
    Suffixes("A-B-named", {"down": "lora_A.{name}.weight", "up": "lora_B.{name}.weight"}),
    Suffixes("lora.down", {"down": "lora.down.weight", "up": "lora.up.weight"}),
    Suffixes("lora_linear_layer", {"down": "lora_linear_layer.down.weight", "up": "lora_linear_layer.up.weight"}),
    Suffixes("processor", {"down": "down.weight", "up": "up.weight"}),
    Suffixes("positional", {"down": "down", "up": "up"}),
)
COMMON_SUFFIXES = {  # the same in every dialect
    "alpha": "alpha",
    "diff": "diff",
    "diff_b": "diff_b",
    "w_norm": "w_norm",
    "b_norm": "b_norm",
}

# Suffixes of algorithms that have no layer type yet: a key that ends in one belongs to a layer.
FOREIGN_SUFFIXES = (
    *("dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight", "lora_B.bias", "scalar"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    *("oft_blocks", "oft_R.weight", "rescale", "boft_R", "boft_s", "ia3_l", "on_input"),
    *("a1.weight", "a2.weight", "b1.weight", "b2.weight", "diff_m", "set_weight", "reshape_weight"),
)

# Namings that differ from a layout in a few words: (layout, ((ending or beginning, its replacement), ...)).
PROCESSOR_ENDINGS = (  # Diffusers 0.12-0.21: the layers belonged to the attention processor; 0.17 named CLIP's so too
    (".to_q", ".processor.to_q_lora"),
    (".to_k", ".processor.to_k_lora"),
    (".to_v", ".processor.to_v_lora"),
    (".to_out.0", ".processor.to_out_lora"),
    (".q_proj", ".to_q_lora"),
    (".k_proj", ".to_k_lora"),
    (".v_proj", ".to_v_lora"),
    (".out_proj", ".to_out_lora"),
)
FLAT_CLIP_BEGINNING = ("text_model.", "")  # transformers >= 5.6 has no text_model level in CLIPTextModel

FORMATS: tuple[Format, ...] = (
    Format(
        "kohya",
        "kohya / A1111 (lora_unet_, lora_te_)",
        prefixes=("kohya",),
        namings=("family", "original", "diffusers", "flat-clip"),
        suffixes=("up-down",),
        joiner="_",
        dense=True,
        tucker=True,
        writable=True,
    ),
    Format(
        "diffusers",
        "Diffusers 0.22 and later (unet., text_encoder.)",
        prefixes=("diffusers",),
        namings=("diffusers", "flat-clip"),
        suffixes=("lora.down", "lora_linear_layer", "A-B", "A-B-named"),
        text_suffixes="lora_linear_layer",
        alpha="folded",
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
        suffixes=("A-B", "A-B-named"),
        alpha="config",
        module_shape=True,
        writable=True,
    ),
    Format(
        "comfy",
        "ComfyUI generic names (diffusion_model., text_encoders.)",
        prefixes=("comfy",),
        namings=("original", "diffusers", "flat-clip"),
        suffixes=("up-down", "A-B", "A-B-named", "lora.down"),
        dense=True,
        tucker=True,
        writable=True,
    ),
    Format(
        "omi",
        "OMI (unet. with the original names)",
        prefixes=("diffusers",),
        namings=("original",),
        suffixes=("up-down", "A-B"),
    ),
    Format(
        "original",
        "original names without a prefix",
        prefixes=("bare",),
        namings=("original",),
        suffixes=("A-B", "up-down", "A-B-named"),
    ),
    Format(
        "diffusers-bare",
        "Diffusers names without a prefix",
        prefixes=("bare",),
        namings=("diffusers",),
        suffixes=("A-B", "up-down", "lora.down", "A-B-named"),
        alpha="folded",
    ),
    Format(
        "safeloras",
        "cloneofsimo's positional safeloras (unet:0:up)",
        prefixes=("positional",),
        namings=("positional",),
        suffixes=("positional",),
        joiner=":",
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
