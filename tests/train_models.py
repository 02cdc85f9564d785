"""Small models for the trainer's tests: a Stable Diffusion pipeline with random weights, a backend of a few layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.train.config import TrainConfig
from lorasmith.lora_core.train.protocols import Cond, Moments, Schedule
from lorasmith.lora_core.train.tokenizers import write_vocabulary

WORDS = 514  # the letters' vocabulary: 256 bytes, the same at a word's end, two marks


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Keep small tensors off the thread pool, which costs more than it gives on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pictures(folder: Path, captions: Mapping[str, str], size: tuple[int, int] = (16, 16)) -> Path:
    """Write one picture of random colours per name, with its caption beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, (name, caption) in enumerate(captions.items()):
        noise = np.random.default_rng(index).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption)
    return folder


def config(tmp: Path, **keys: Any) -> TrainConfig:
    """Return a small run's configuration over `tmp/data`, written to `tmp/run`."""
    base = {"model": "tiny", "data": str(tmp / "data"), "out": str(tmp / "run"), "name": "tiny", "steps": 7, "rank": 2}
    more = {"alpha": 2, "resolution": 16, "learning_rate": 0.01, "checkpoint_every": 0, "seed": 5}
    return TrainConfig.from_json({**base, **more, **keys})


class TinyBackend:
    """Three layers in the place of a model; text is a learnt table over letters, latents are the pixels."""

    architecture, fingerprint = "sd15", "tiny-1"
    facts: Mapping[str, str] = {"device": "cpu"}
    names: Mapping[Target, str] = {}
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, text_encoder: bool = False):
        generator = torch.Generator().manual_seed(3)
        layers = {"conv": nn.Conv2d(3, 8, 3, padding=1), "mix": nn.Linear(8, 8), "out": nn.Conv2d(8, 3, 1)}
        self.net = nn.ModuleDict({**layers, "text": nn.Linear(256, 8)})
        for parameter in self.net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.requires_grad_(False)
        self.text_encoder = text_encoder
        self.schedule = Schedule("epsilon", torch.linspace(0.99, 0.01, 50))
        self.encoded: list[str] = []  # what the encoders were asked for

    @property
    def denoiser(self) -> TinyBackend:
        return self

    def modules(self) -> Mapping[Target, nn.Module]:
        found = {Target("denoiser", name): self.net[name] for name in ("conv", "mix", "out")}
        return {**found, Target("clip_l", "text"): self.net["text"]} if self.text_encoder else found

    def __call__(self, noisy: Tensor, t: Tensor, cond: Cond) -> Tensor:
        context = self.net["text"](cond["letters"]) if "letters" in cond else cond["context"]
        hidden = self.net["conv"](noisy) + context[:, :, None, None] + t[:, None, None, None] / 50
        hidden = self.net["mix"](torch.tanh(hidden).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        result: Tensor = self.net["out"](torch.tanh(hidden))
        return result

    def encode_image(self, pixels: Tensor) -> Moments:
        self.encoded.append("image")
        return Moments(pixels[:, ::2, ::2], torch.full_like(pixels[:, ::2, ::2], 0.1))

    def encode_text(self, caption: str) -> Cond:
        self.encoded.append(caption)
        letters = torch.zeros(1, 256)
        for letter in caption.encode():
            letters[0, letter] += 1
        return {"letters": letters} if self.text_encoder else {"context": self.net["text"](letters)}

    def sample(self, prompt: str, seed: int) -> Image.Image:
        shade = int(self(torch.ones(1, 3, 4, 4), torch.tensor([1]), self.encode_text(prompt)).abs().mean() * 255) % 256
        return Image.new("RGB", (8, 8), (shade,) * 3)

    @contextmanager
    def training(self) -> Iterator[None]:
        yield


def write_plain(adapter: Adapter, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an adapter under plain names."""
    tensors = {}
    for target, layer in adapter.layers.items():
        for name, tensor in zip(("down", "up"), layer.tensors(), strict=True):
            tensors[f"{target.component}.{target.module}.{name}"] = tensor
    save_file(tensors, path, dict(metadata))


def same_file(first: Path, second: Path) -> bool:
    """Say whether two files hold the same tensors, bit for bit."""
    ours, theirs = load_file(first), load_file(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def tiny_pipeline(folder: Path, sdxl: bool = False, prediction: str = "epsilon", v2: bool = False) -> Path:
    """Write a diffusers pipeline of SD 1.5's layout (or 2.x's, or SDXL's) with few channels and random weights."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    attention = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    shape: dict[str, Any] = {
        "block_out_channels": (16,) * 4,
        "norm_num_groups": 4,
        "layers_per_block": 2,
        "sample_size": 8,
    }
    shape |= {"down_block_types": attention[0], "up_block_types": attention[1], "attention_head_dim": 2}
    shape |= {"cross_attention_dim": 32 if sdxl else 16, "use_linear_projection": sdxl or v2}
    if sdxl:
        shape |= {"block_out_channels": (16,) * 3, "transformer_layers_per_block": (1, 2, 10)}
        shape |= {"down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2}
        shape |= {"up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",)}
        shape |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
        shape |= {"projection_class_embeddings_input_dim": 6 * 8 + 16}
    UNet2DConditionModel(**shape).save_pretrained(folder / "unet")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    AutoencoderKL(
        block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=4, layers_per_block=1, **blocks
    ).save_pretrained(folder / "vae")
    text: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 32, "projection_dim": 16}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "bos_token_id": WORDS - 2, "eos_token_id": WORDS - 1}
    for ending, kind in (("", CLIPTextModel), ("_2", CLIPTextModelWithProjection))[: 2 if sdxl else 1]:
        kind(CLIPTextConfig(**text, pad_token_id=1)).save_pretrained(folder / f"text_encoder{ending}")
        (folder / f"tokenizer{ending}").mkdir(parents=True)
        write_vocabulary(folder / f"tokenizer{ending}", [])
    DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction, clip_sample=False
    ).save_pretrained(folder / "scheduler")
    torch.random.set_rng_state(state)
    return folder


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    **{"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"},
    **{"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"},
    **{"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"},
    **{"mid_block.resnets.1": "middle_block.2"},
    **{f"down_blocks.{i}.resnets.{j}": f"input_blocks.{3 * i + j + 1}.0" for i in range(4) for j in range(2)},
    **{f"down_blocks.{i}.attentions.{j}": f"input_blocks.{3 * i + j + 1}.1" for i in range(3) for j in range(2)},
    **{f"down_blocks.{i}.downsamplers.0.conv": f"input_blocks.{3 * i + 3}.0.op" for i in range(3)},
    **{f"up_blocks.{i}.resnets.{j}": f"output_blocks.{3 * i + j}.0" for i in range(4) for j in range(3)},
    **{f"up_blocks.{i}.attentions.{j}": f"output_blocks.{3 * i + j}.1" for i in range(1, 4) for j in range(3)},
    **{f"up_blocks.{i}.upsamplers.0.conv": f"output_blocks.{3 * i + 2}.{min(i, 1) + 1}.conv" for i in range(3)},
}
_VAE = {
    **{
        f"{side}.mid_block.resnets.{j}": f"{side}.mid.block_{j + 1}"
        for side in ("encoder", "decoder")
        for j in range(2)
    },
    **{f"{side}.mid_block.attentions.0": f"{side}.mid.attn_1" for side in ("encoder", "decoder")},
    **{f"{side}.conv_norm_out": f"{side}.norm_out" for side in ("encoder", "decoder")},
    **{f"encoder.down_blocks.{i}.resnets.{j}": f"encoder.down.{i}.block.{j}" for i in range(4) for j in range(2)},
    **{f"encoder.down_blocks.{i}.downsamplers.0": f"encoder.down.{i}.downsample" for i in range(3)},
    **{f"decoder.up_blocks.{i}.resnets.{j}": f"decoder.up.{3 - i}.block.{j}" for i in range(4) for j in range(3)},
    **{f"decoder.up_blocks.{i}.upsamplers.0": f"decoder.up.{3 - i}.upsample" for i in range(3)},
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _original(key: str, table: Mapping[str, str], inner: Mapping[str, str]) -> str:
    for ours, theirs in table.items():
        if key.startswith(f"{ours}."):
            rest, kind = key[len(ours) + 1 :].rpartition(".")[::2]
            return ".".join(filter(None, (theirs, inner.get(rest, rest), kind)))
    return key


def in_original_layout(pipeline: Path, table: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Yield a UNet's tensors under a checkpoint's names."""
    for key, tensor in load_file(pipeline / "unet/diffusion_pytorch_model.safetensors").items():
        inner = _RESNET if ".resnets." in key else {}
        yield f"model.diffusion_model.{_original(key, table, inner)}", tensor


def vae_in_original_layout(pipeline: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield an autoencoder's tensors under a checkpoint's names."""
    for key, tensor in load_file(pipeline / "vae/diffusion_pytorch_model.safetensors").items():
        attention = ".attentions.0." in key
        inner = _VAE_ATTENTION if attention else {"conv_shortcut": "nin_shortcut"}
        wide = tensor[:, :, None, None] if attention and tensor.dim() == 2 else tensor
        yield f"first_stage_model.{_original(key, _VAE, inner)}", wide


def as_checkpoint(pipeline: Path, file: Path, open_clip: bool = False) -> Path:
    """Write a pipeline as one file in the original layout."""
    found = dict(in_original_layout(pipeline, _UNET)) | dict(vae_in_original_layout(pipeline))
    text = {k.removeprefix("text_model."): v for k, v in load_file(pipeline / "text_encoder/model.safetensors").items()}
    text.pop("embeddings.position_ids", None)
    found.update(
        open_clip_names(text)
        if open_clip
        else {f"cond_stage_model.transformer.text_model.{k}": v for k, v in text.items()}
    )
    save_file({key: tensor.contiguous() for key, tensor in found.items()}, file)
    return file


def open_clip_names(text: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name text tensors as OpenCLIP does, q, k and v fused."""
    lead, found = "cond_stage_model.model.", {}
    parts = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj"}
    parts |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    ends = {"embeddings.token_embedding.weight": "token_embedding.weight"}
    ends |= {"embeddings.position_embedding.weight": "positional_embedding"}
    ends |= {f"final_layer_norm.{kind}": f"ln_final.{kind}" for kind in ("weight", "bias")}
    for key, tensor in text.items():
        if key in ends:
            found[lead + ends[key]] = tensor
        elif "q_proj" in key:
            layer, kind = key.split(".")[2], key.rpartition(".")[2]
            fused = torch.cat([text[key.replace("q_proj", f"{letter}_proj")] for letter in "qkv"])
            found[f"{lead}transformer.resblocks.{layer}.attn.in_proj_{kind}"] = fused
        elif "k_proj" not in key and "v_proj" not in key:
            _, _, layer, *part, kind = key.split(".")
            found[f"{lead}transformer.resblocks.{layer}.{parts['.'.join(part)]}.{kind}"] = tensor
    return found
