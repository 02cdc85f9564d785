"""The nodes, one literal each. The order here is the order in the menu."""

from __future__ import annotations

from functools import partial

from ..convert.formats import WRITABLE
from ..lora_core.ops.methods import IDS, METHODS
from ..lora_core.train.config import CHOICES
from ..lora_core.train.pictures import SUFFIXES
from . import actions, algebra, extract, resize
from .paths import picture_folders
from .seam import Host
from .spec import ADAPTER, LORA_MODEL, Choice, Node, Number, Output, Socket, Switch, Text
from .training import pictures_fingerprint, train_lora

OPTIMIZERS = ("adamw", "prodigy", "lion", "adafactor")  # that come along with torch or Lorasmith
STRENGTH = {"low": -100.0, "high": 100.0, "step": 0.01}
ADAPTER_OUT = Output("lora", ADAPTER, "The LoRA, for the other Lorasmith nodes.")


def nodes(host: Host) -> tuple[Node, ...]:
    """Return all nodes, bound to a host."""
    return (
        _load(host),
        _apply(host),
        SCALE,
        MERGE,
        algebra.BLOCK_STRENGTHS,
        algebra.PICK,
        algebra.SUM,
        resize.RESIZE,
        resize.PRUNE,
        extract.node(host),
        _save(host),
        _inspect(host),
        _train(host),
        TO_LORA_MODEL,
        FROM_LORA_MODEL,
    )


def _load(host: Host) -> Node:
    return Node(
        "LorasmithLoadLora",
        "Load LoRA (Lorasmith)",
        "Reads a LoRA file in any dialect (kohya, Diffusers, PEFT, ComfyUI and more) and says what it is.",
        inputs=(
            Choice("lora", host.lora_names, "A file in the loras folders. It is read anew when it changes on disk."),
        ),
        outputs=(ADAPTER_OUT,),
        run=partial(actions.load_lora, host),
        aliases=("lora loader", "read lora"),
        fingerprint=partial(actions.lora_fingerprint, host),
    )


def _apply(host: Host) -> Node:
    return Node(
        "LorasmithApplyLora",
        "Apply LoRA (Lorasmith)",
        "Patches MODEL and CLIP with a LoRA, or says in one line why it does not fit, before anything is changed.",
        inputs=(
            Socket("lora", ADAPTER, "The LoRA to apply."),
            Number(
                "strength_model", 1.0, tooltip="How strongly the diffusion model is changed; 0 leaves it.", **STRENGTH
            ),
            Number(
                "strength_clip", 1.0, tooltip="How strongly the text encoders are changed; 0 leaves them.", **STRENGTH
            ),
            Switch(
                "allow_partial",
                False,
                "Apply the layers that fit even if others do not, or if the LoRA seems made for another model.",
                advanced=True,
            ),
            Socket("model", "MODEL", "The diffusion model to change; may stay unwired.", optional=True),
            Socket("clip", "CLIP", "The text encoders to change; may stay unwired.", optional=True),
        ),
        outputs=(
            Output("model", "MODEL", "The changed diffusion model."),
            Output("clip", "CLIP", "The changed text encoders."),
        ),
        run=partial(actions.apply_lora, host),
        aliases=("lora", "patch model"),
    )


SCALE = Node(
    "LorasmithScaleLora",
    "Scale LoRA (Lorasmith)",
    "The same LoRA at another strength, without loss: its weights stay bit for bit, alpha carries the factor.",
    inputs=(
        Socket("lora", ADAPTER, "The LoRA to scale."),
        Number("strength", 1.0, tooltip="Strength of the layers of the diffusion model.", **STRENGTH),
        Number("text_encoder", 1.0, tooltip="Strength of the layers of the text encoders.", **STRENGTH),
    ),
    outputs=(ADAPTER_OUT,),
    run=actions.scale_lora,
    aliases=("lora strength",),
)

MERGE = Node(
    "LorasmithMergeLoras",
    "Merge LoRAs (Lorasmith)",
    "Makes LoRAs into one, by the sum of their effects or another method, and measures the error.",
    inputs=(
        Socket("lora_a", ADAPTER, "The first LoRA."),
        Number("strength_a", 1.0, tooltip="Strength of the first LoRA in the sum.", **STRENGTH),
        Socket("lora_b", ADAPTER, "The second LoRA."),
        Number("strength_b", 1.0, tooltip="Strength of the second LoRA in the sum.", **STRENGTH),
        Number("strength_c", 1.0, tooltip="Strength of the third LoRA, if one is wired.", **STRENGTH),
        Number("strength_d", 1.0, tooltip="Strength of the fourth LoRA, if one is wired.", **STRENGTH),
        Choice("method", IDS, "\n".join(f"{row.id}: {row.when}." for row in METHODS), "exact"),
        Number("rank", 32, 0, 1024, 1, "Rank of the result at most; 0: as the method needs. exact ignores it."),
        Socket("lora_c", ADAPTER, "A third LoRA; may stay unwired.", optional=True),
        Socket("lora_d", ADAPTER, "A fourth LoRA; may stay unwired.", optional=True),
        Number(
            "energy",
            0.0,
            0.0,
            1.0,
            0.001,
            "Share of each layer's energy to keep, within the rank; 0: by rank alone. exact ignores it.",
            advanced=True,
        ),
        Number(
            "density",
            0.0,
            0.0,
            1.0,
            0.01,
            "Share of the entries that stay, for ties to breadcrumbs and knots; 0: the method's own (0.5 or 0.9).",
            advanced=True,
        ),
        Number("seed", 0, 0, 2**53, 1, "Of the lots that dare and della draw; equal seeds agree.", advanced=True),
    ),
    outputs=(ADAPTER_OUT, Output("report", "STRING", "What was merged, and the measured relative error.")),
    run=actions.merge_loras,
    aliases=("combine loras", "lora merge", "add loras"),
)


def _save(host: Host) -> Node:
    return Node(
        "LorasmithSaveLora",
        "Convert and Save LoRA (Lorasmith)",
        "Writes a LoRA in the dialect that a host reads, once it is proved that the file does the same.",
        inputs=(
            Socket("lora", ADAPTER, "The LoRA to save."),
            Text(
                "filename_prefix", "lorasmith/lora", "Name below output/loras. A file that is there is never replaced."
            ),
            Choice(
                "format",
                WRITABLE,
                "kohya for A1111 and Forge, diffusers or peft for Python, comfy for ComfyUI.",
                "kohya",
            ),
            Choice(
                "dtype", ("keep", "fp32", "fp16", "bf16"), "Number format of the weights; keep changes nothing.", "keep"
            ),
        ),
        outputs=(
            Output("path", "STRING", "Full path of the new file."),
            Output("report", "STRING", "What was written, and the measured relative error."),
        ),
        run=partial(actions.save_lora, host),
        aliases=("convert lora", "export lora"),
        terminal=True,
    )


def _inspect(host: Host) -> Node:
    return Node(
        "LorasmithInspectLora",
        "Inspect LoRA (Lorasmith)",
        "Says what a LoRA is: family, algorithms, ranks, trigger words, health, and whether it fits the wired models. "
        "Draws the strength of its blocks and layers.",
        inputs=(
            Socket("lora", ADAPTER, "The LoRA to look at."),
            Socket("model", "MODEL", "A diffusion model to hold it against; may stay unwired.", optional=True),
            Socket("clip", "CLIP", "Text encoders to hold it against; may stay unwired.", optional=True),
            Socket("other", ADAPTER, "Another LoRA to compare with, block by block; may stay unwired.", optional=True),
            Switch("picture", True, "Draw the picture; off is quicker for large LoHa, LoKr and full.", advanced=True),
        ),
        outputs=(
            Output("text", "STRING", "The verdict, line by line."),
            Output("picture", "IMAGE", "Singular values and energy by block, and which blocks and layers change most."),
        ),
        run=partial(actions.inspect_lora, host),
        aliases=("lora info", "lora metadata", "trigger words", "lora spectrum", "compare loras"),
        terminal=True,
    )


TRAINING = (  # further settings, under their names in the configuration
    Choice("algorithm", CHOICES["algorithm"], "What is trained: plain LoRA, or a kin of it.", "lora", True),
    Choice("optimizer", OPTIMIZERS, "Prodigy finds its own rate: set learning_rate to 1 with it.", "adamw", True),
    Choice("loss", CHOICES["loss"], "Huber and smooth L1 give outliers less weight.", "mse", True),
    Switch("buckets", False, "Keep aspect ratios: batches of equal sizes instead of squares.", advanced=True),
    Switch("shuffle_captions", False, "Put the tags of a caption in a new order each time.", advanced=True),
    Number("caption_dropout", 0.0, 0.0, 1.0, 0.01, "Share of the steps without a caption.", advanced=True),
    Text("trigger_word", "", "Put before every caption that lacks it, and into the file.", advanced=True),
    Switch("prior_from_base", False, "Hold the model to what it made before, for other prompts.", advanced=True),
    Number("dropout", 0.0, 0.0, 0.99, 0.01, "Share of the inner values that each step leaves out.", advanced=True),
    Number("noise_offset", 0.0, 0.0, 1.0, 0.01, "Lets very dark and very bright pictures be learnt.", advanced=True),
    Number("ema", 0.0, 0.0, 1.0, 0.001, "Decay of a moving average, which is then saved; 0 is none.", advanced=True),
)


def _train(host: Host) -> Node:
    return Node(
        "LorasmithTrainLora",
        "Train LoRA (Lorasmith)",
        "Trains a LoRA for the loaded model on a folder of pictures. Cancel keeps what is trained so far.",
        inputs=(
            Socket("model", "MODEL", "The diffusion model to train for; it is the same again afterwards."),
            Socket("clip", "CLIP", "Its text encoders."),
            Socket("vae", "VAE", "Its autoencoder."),
            Choice(
                "pictures",
                lambda: picture_folders(host.input_folder(), SUFFIXES),
                "A folder below ComfyUI's input folder. A caption is a .txt file beside its picture.",
            ),
            Text("name", "my-lora", "Name of the result below output/loras; a number is added when it is taken."),
            Text("instance_prompt", "", "Caption of the pictures that have none of their own.", multiline=True),
            Number("steps", 1000, 1, 1_000_000, 1, "Optimizer steps in all."),
            Number("learning_rate", 1e-4, 0.0, 1.0, 1e-6, "Peak learning rate."),
            Number("rank", 16, 1, 1024, 1, "Size of the LoRA: its inner dimension."),
            Number(
                "alpha", 16.0, 0.01, 1024.0, 0.01, "The effect is alpha / rank times the product; equal to rank is 1."
            ),
            Number("batch_size", 1, 1, 256, 1, "Pictures per forward pass."),
            Number("resolution", 512, 64, 4096, 8, "Side of the square that pictures are cut to."),
            Choice("targets", CHOICES["targets"], "Which layers are adapted.", "attention"),
            Switch("text_encoder", False, "Train the text encoders too."),
            Number("seed", 1337, 0, 2**53, 1, "Equal seeds and settings give equal results."),
            Choice(
                "scheduler", CHOICES["scheduler"], "How the learning rate goes on after the warm-up.", "cosine", True
            ),
            Number("warmup", 0, 0, 100_000, 1, "Steps over which the learning rate rises from 0.", advanced=True),
            Number("accumulate", 1, 1, 1024, 1, "Forward passes per optimizer step.", advanced=True),
            Number(
                "min_snr_gamma", 0.0, 0.0, 100.0, 0.1, "Min-SNR weighting; 0 weighs all timesteps alike.", advanced=True
            ),
            Switch("random_flip", False, "Mirror half of the pictures.", advanced=True),
            Number(
                "checkpoint_every",
                500,
                0,
                100_000,
                1,
                "Steps between checkpoints; 0 saves only at the end.",
                advanced=True,
            ),
            Switch("resume", False, "Go on with the last run of this name, bit for bit.", advanced=True),
            *TRAINING,
        ),
        outputs=(ADAPTER_OUT, Output("path", "STRING", "Full path of the new file below output/loras.")),
        run=partial(train_lora, host),
        aliases=("lora training", "fine-tune", "dreambooth"),
        fingerprint=partial(pictures_fingerprint, host),
        terminal=True,
    )


TO_LORA_MODEL = Node(
    "LorasmithToLoraModel",
    "LoRA to LORA_MODEL (Lorasmith)",
    "Hands a LoRA to ComfyUI's own LoRA nodes.",
    inputs=(Socket("lora", ADAPTER, "The LoRA to hand over."),),
    outputs=(Output("lora_model", LORA_MODEL, "For ComfyUI's Load LoRA Model and Save LoRA Weights."),),
    run=actions.to_lora_model,
)

FROM_LORA_MODEL = Node(
    "LorasmithFromLoraModel",
    "LORA_MODEL to LoRA (Lorasmith)",
    "Takes a LoRA from ComfyUI's own nodes, such as Train LoRA.",
    inputs=(Socket("lora_model", LORA_MODEL, "What ComfyUI's own LoRA nodes give out."),),
    outputs=(ADAPTER_OUT,),
    run=actions.from_lora_model,
)
