"""Makes the tiny Stable Diffusion beside this file, from nothing but pictures that it draws itself.

python make_tiny_sd.py             train everything and write the pipeline's folders (an hour or more)
python make_tiny_sd.py --check     generate 200 pictures with what is there and print how many are right
python make_tiny_sd.py --subjects  write the pictures of the LoRA demo: ../subject, ../subject_validation, ..._two
"""

import argparse
import json
from pathlib import Path

import autoencoder
import check
import denoiser
import subjects
import tokens
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

HERE = Path(__file__).resolve().parent

MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.17.0",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def make(folder: Path) -> None:
    """Trains all parts and writes them to `folder`."""
    tokens.write(folder / "tokenizer")
    pictures = autoencoder.draw(autoencoder.PICTURES, seed=0)
    vae = autoencoder.train(pictures)
    scenes, drawn = denoiser.draw(seed=1)
    latents = autoencoder.encode(vae, drawn) * vae.config.scaling_factor
    parts = denoiser.build(CLIPTokenizer.from_pretrained(folder / "tokenizer"))
    denoiser.train(parts, scenes, latents)
    autoencoder.refine(vae, pictures)
    save(folder, vae, parts)


def save(folder: Path, vae: AutoencoderKL, parts: denoiser.Parts) -> None:
    """Writes the parts in float16; halves them in place."""
    vae.half().save_pretrained(folder / "vae")
    parts.unet.half().save_pretrained(folder / "unet")
    parts.text_encoder.half().save_pretrained(folder / "text_encoder")
    name_as_clip(folder / "text_encoder" / "model.safetensors")
    compute_in_float32(folder / "text_encoder" / "config.json")
    parts.scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n", encoding="utf-8")


def name_as_clip(path: Path) -> None:
    """Gives the file's keys the prefix `text_model.`, which transformers 5 leaves out and every version reads."""
    prefix = "text_model."
    weights = {prefix + key.removeprefix(prefix): value for key, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def compute_in_float32(path: Path) -> None:
    """Says so in a model's configuration: transformers 5 would compute in float16 beside a float32 UNet."""
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="generate pictures and print how many are right")
    parser.add_argument("--subjects", action="store_true", help="write the pictures of the LoRA demo")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.subjects:
        subjects.write(HERE.parent)
        return
    if not options.check:
        make(HERE)
    for name, share in check.report(HERE).items():
        print(f"{name:26s} {share:6.1%}")


if __name__ == "__main__":
    main()
