"""One training step of every family against diffusers' classes and PEFT's layers, as diffusers' scripts compute it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402
from train_families import write_pipeline  # noqa: E402
from train_models import config, one_thread, pictures  # noqa: E402

from lorasmith.convert import read  # noqa: E402
from lorasmith.convert.training import diffusers_names, train  # noqa: E402
from lorasmith.lora_core.adapter import Target  # noqa: E402
from lorasmith.lora_core.errors import BadConfig, FileProblem, WrongArchitecture  # noqa: E402
from lorasmith.lora_core.train.create import create  # noqa: E402
from lorasmith.lora_core.train.diffusers_backend import DiffusersBackend, open_backend, preset_layers  # noqa: E402
from lorasmith.lora_core.train.diffusers_load import load  # noqa: E402
from lorasmith.lora_core.train.families import collate, family_of  # noqa: E402
from lorasmith.lora_core.train.inject import attached  # noqa: E402
from lorasmith.lora_core.train.objective import Objective  # noqa: E402

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")

CAPTIONS = ("a red cat", "z")
SIGMAS = (0.25, 0.875)  # s of flow models; both are exact in bf16 too
GUIDANCE = 2.0


@dataclass(frozen=True)
class Seen:
    """What a script has at hand when it calls its model: (B, C, [frames,] h, w) and so on."""

    clean: Tensor
    noise: Tensor
    s: Tensor  # (B,)

    @property
    def noisy(self) -> Tensor:
        s = self.s.view(-1, *[1] * (self.clean.dim() - 1))
        return (1 - s) * self.clean + s * self.noise


@dataclass(frozen=True)
class Reference:
    """How diffusers' script for a family encodes, and what it computes; each function takes the whole pipeline."""

    latents: Callable[[Any, Tensor], Tensor]  # pixels (B, 3, H, W) -> latents, in the mean or mode
    text: Callable[[Any, Sequence[str]], Any]
    errors: Callable[[Any, Seen, Any], Tensor]  # prediction - target, in any arrangement of the latents' values


def kl(pipe: Any, pixels: Tensor) -> Tensor:
    found = pipe.vae.encode(pixels).latent_dist.mode()
    return (found - (pipe.vae.config.shift_factor or 0)) * pipe.vae.config.scaling_factor


TIME_IDS = torch.tensor([[40.0, 60, 0, 3, 32, 48], [32, 48, 4, 0, 32, 48]])


def sd_text(pipe: Any, captions: Sequence[str]) -> Any:
    return pipe.encode_prompt(list(captions), "cpu", 1, False)[0]


def sd(pipe: Any, seen: Seen, text: Any, **more: Any) -> Tensor:
    t = (seen.s * 1000).long()
    found = pipe.unet(pipe.scheduler.add_noise(seen.clean, seen.noise, t), t, text, return_dict=False, **more)[0]
    if pipe.scheduler.config.prediction_type == "v_prediction":
        return found - pipe.scheduler.get_velocity(seen.clean, seen.noise, t)
    return found - seen.noise


def sdxl_text(pipe: Any, captions: Sequence[str]) -> Any:
    context, _, pooled, _ = pipe.encode_prompt(list(captions), device="cpu", do_classifier_free_guidance=False)
    return context, pooled


def sdxl(pipe: Any, seen: Seen, text: Any) -> Tensor:
    return sd(pipe, seen, text[0], added_cond_kwargs={"text_embeds": text[1], "time_ids": TIME_IDS})


def sd3_text(pipe: Any, captions: Sequence[str]) -> Any:
    context, _, pooled, _ = pipe.encode_prompt(list(captions), None, None, do_classifier_free_guidance=False)
    return context, pooled


def sd3(pipe: Any, seen: Seen, text: Any) -> Tensor:
    context, pooled = text
    found = pipe.transformer(
        hidden_states=seen.noisy,
        timestep=seen.s * 1000,
        encoder_hidden_states=context,
        pooled_projections=pooled,
        return_dict=False,
    )[0]
    return found - (seen.noise - seen.clean)


def flux_text(pipe: Any, captions: Sequence[str]) -> Any:
    length = 512 if pipe.transformer.config.guidance_embeds else 256
    return pipe.encode_prompt(list(captions), max_sequence_length=length)


def flux(pipe: Any, seen: Seen, text: Any) -> Tensor:
    context, pooled, text_ids = text
    batch, channels, height, width = seen.clean.shape
    guided = pipe.transformer.config.guidance_embeds
    found = pipe.transformer(
        hidden_states=pipe._pack_latents(seen.noisy, batch, channels, height, width),
        timestep=seen.s,
        guidance=torch.tensor([GUIDANCE]).expand(batch) if guided else None,
        pooled_projections=pooled,
        encoder_hidden_states=context,
        txt_ids=text_ids,
        img_ids=pipe._prepare_latent_image_ids(batch, height // 2, width // 2, "cpu", torch.float32),
        return_dict=False,
    )[0]
    found = pipe._unpack_latents(found, height * 8, width * 8, 8)
    return found - (seen.noise - seen.clean)


def chroma_text(pipe: Any, captions: Sequence[str]) -> Any:
    return pipe.encode_prompt(list(captions), do_classifier_free_guidance=False)[:3]


def chroma(pipe: Any, seen: Seen, text: Any) -> Tensor:
    context, text_ids, mask = text
    batch, channels, height, width = seen.clean.shape
    tokens = pipe._pack_latents(seen.noisy, batch, channels, height, width)
    found = pipe.transformer(
        hidden_states=tokens,
        timestep=seen.s,
        encoder_hidden_states=context,
        txt_ids=text_ids,
        img_ids=pipe._prepare_latent_image_ids(batch, height // 2, width // 2, "cpu", torch.float32),
        attention_mask=pipe._prepare_attention_mask(batch, tokens.shape[1], tokens.dtype, mask),
        return_dict=False,
    )[0]
    return pipe._unpack_latents(found, height * 8, width * 8, 8) - (seen.noise - seen.clean)


def flux2_latents(pipe: Any, pixels: Tensor) -> Tensor:
    return pipe._encode_vae_image(pixels, None)


def flux2_text(pipe: Any, captions: Sequence[str]) -> Any:
    return pipe.encode_prompt(list(captions))


def flux2(pipe: Any, seen: Seen, text: Any) -> Tensor:
    context, text_ids = text
    ids = pipe._prepare_latent_ids(seen.noisy)
    found = pipe.transformer(
        hidden_states=pipe._pack_latents(seen.noisy),
        timestep=seen.s,
        guidance=None,
        encoder_hidden_states=context,
        txt_ids=text_ids,
        img_ids=ids,
        return_dict=False,
    )[0]
    return pipe._unpack_latents_with_ids(found, ids) - (seen.noise - seen.clean)


def z_image_text(pipe: Any, captions: Sequence[str]) -> Any:
    return pipe.encode_prompt(list(captions), do_classifier_free_guidance=False)[0]


def z_image(pipe: Any, seen: Seen, text: Any) -> Tensor:
    pictures = list(seen.noisy.unsqueeze(2).unbind(dim=0))
    found = torch.stack(pipe.transformer(pictures, (1000 - seen.s * 1000) / 1000, text, return_dict=False)[0])
    return -found.squeeze(2) - (seen.noise - seen.clean)


def video_latents(pipe: Any, pixels: Tensor) -> Tensor:
    frames = pixels if pixels.dim() == 5 else pixels.unsqueeze(2)
    mean, std = (torch.tensor(pipe.vae.config[f"latents_{w}"]).view(1, -1, 1, 1, 1) for w in ("mean", "std"))
    return (pipe.vae.encode(frames).latent_dist.mode() - mean) * (1 / std)


def qwen_image(pipe: Any, seen: Seen, text: Any) -> Tensor:
    context, mask = text
    batch, channels, height, width = seen.clean.shape
    found = pipe.transformer(
        hidden_states=pipe._pack_latents(seen.noisy[:, None], batch, channels, height, width),
        encoder_hidden_states=context,
        encoder_hidden_states_mask=mask,
        timestep=seen.s,
        img_shapes=[(1, height // 2, width // 2)] * batch,
        return_dict=False,
    )[0]
    return pipe._unpack_latents(found, height * 8, width * 8, 8)[:, :, 0] - (seen.noise - seen.clean)


def masked_text(pipe: Any, captions: Sequence[str]) -> Any:
    return pipe.encode_prompt(list(captions), do_classifier_free_guidance=False)[:2]


def lumina2(pipe: Any, seen: Seen, text: Any) -> Tensor:
    context, mask = text
    share = (1 - seen.s).view(-1, 1, 1, 1)  # the script counts from noise to picture
    found = pipe.transformer(
        hidden_states=(1 - share) * seen.noise + share * seen.clean,
        encoder_hidden_states=context,
        encoder_attention_mask=mask,
        timestep=1 - seen.s,
        return_dict=False,
    )[0]
    return found - (seen.clean - seen.noise)


def sana(pipe: Any, seen: Seen, text: Any) -> Tensor:
    context, mask = text
    found = pipe.transformer(
        hidden_states=seen.noisy,
        encoder_hidden_states=context,
        encoder_attention_mask=mask,
        timestep=seen.s * 1000,
        return_dict=False,
    )[0]
    return found - (seen.noise - seen.clean)


def pixart(pipe: Any, seen: Seen, text: Any) -> Tensor:
    context, mask = text
    t = (seen.s * 1000).long()
    found = pipe.transformer(
        pipe.scheduler.add_noise(seen.clean, seen.noise, t),
        encoder_hidden_states=context,
        encoder_attention_mask=mask,
        timestep=t,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )[0]
    return found.chunk(2, dim=1)[0] - seen.noise


def wan_text(pipe: Any, captions: Sequence[str]) -> Any:
    return pipe.encode_prompt(list(captions), do_classifier_free_guidance=False, max_sequence_length=512)[0]


def wan(pipe: Any, seen: Seen, text: Any) -> Tensor:
    found = pipe.transformer(seen.noisy, timestep=seen.s * 1000, encoder_hidden_states=text, return_dict=False)[0]
    return found - (seen.noise - seen.clean)


REFERENCES: Mapping[str, Reference] = {
    "sd15": Reference(kl, sd_text, sd),
    "sd21": Reference(kl, sd_text, sd),
    "sdxl": Reference(kl, sdxl_text, sdxl),
    "sd3": Reference(kl, sd3_text, sd3),
    "flux": Reference(kl, flux_text, flux),
    "flux2": Reference(flux2_latents, flux2_text, flux2),
    "chroma": Reference(kl, chroma_text, chroma),
    "z_image": Reference(kl, z_image_text, z_image),
    "qwen_image": Reference(lambda pipe, pixels: video_latents(pipe, pixels)[:, :, 0], flux2_text, qwen_image),
    "lumina2": Reference(kl, masked_text, lumina2),
    "sana": Reference(lambda pipe, pixels: pipe.vae.encode(pixels).latent * 0.41407, masked_text, sana),
    "pixart": Reference(kl, masked_text, pixart),
    "wan": Reference(video_latents, wan_text, wan),
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give a family's small pipeline; written once."""
    root, made = tmp_path_factory.mktemp("families"), dict[str, Path]()

    def give(family: str, **options: Any) -> Path:
        name = family + "".join(f"-{key}-{value}" for key, value in options.items())
        if name not in made:
            made[name] = write_pipeline(family, root / name, **options)
        return made[name]

    return give


def opened(tmp: Path, model: Path, **keys: Any) -> DiffusersBackend:
    guided = {"guidance": GUIDANCE} if model.name == "flux" else {}
    return open_backend(config(tmp, model=str(model), resolution=32, **guided, **keys), diffusers_names)


def adapted(backend: DiffusersBackend, pipe: Any, factors: Mapping[Target, Any]) -> dict[Target, Any]:
    """Give the pipeline's models PEFT's layers with the same factors; return them by target."""
    places = {"denoiser": backend.family.folder, **{e.component: e.folder for e in backend.family.encoders}}
    layers: dict[Target, Any] = {}
    for component in dict.fromkeys(target.component for target in factors):
        model = getattr(pipe, places[component])
        spelled = {target: name for name, target in diffusers_names(backend.architecture, component).items()}
        inside = {name.removeprefix("text_model."): name for name, _ in model.named_modules()}
        names = {t: inside[spelled[t].removeprefix("text_model.")] for t in factors if t.component == component}
        wanted = list(names.values())
        model.requires_grad_(False)
        layout = peft.LoraConfig(r=2, lora_alpha=6, target_modules=wanted, init_lora_weights=False)
        peft.inject_adapter_in_model(layout, model)
        layers |= {target: model.get_submodule(name) for target, name in names.items()}
    for target, trained in factors.items():
        down, up = (getattr(layers[target], f"lora_{letter}")["default"].weight for letter in "AB")
        down.data, up.data = trained.down.data.view(down.shape).clone(), trained.up.data.view(up.shape).clone()
    return layers


def compare(
    tmp: Path, model: Path, reference: Reference, shape: tuple[int, ...] = (64, 32), **keys: Any
) -> tuple[float, float]:
    """Return the relative differences of one step's loss and of its largest gradient, ours against the reference."""
    backend = opened(tmp, model, targets="attention+ff", rank=2, alpha=6, **keys)
    absent = {"text_encoder_3": None, "tokenizer_3": None} if model.name == "sd3-t5_there-False" else {}
    pipe = diffusers.DiffusionPipeline.from_pretrained(model, **absent)
    for part in (*vars(backend.parts).values(), *backend.parts.text_encoders.values(), *pipe.components.values()):
        if isinstance(part, torch.nn.Module):
            part.double()
    backend.dtype = torch.float64
    draw = torch.Generator().manual_seed(4)
    pixels = torch.rand(2, 3, *shape, generator=draw).double() * 2 - 1

    clean = torch.stack([backend.encode_image(one).mean for one in pixels])
    with torch.no_grad():
        theirs = reference.latents(pipe, pixels)
    torch.testing.assert_close(clean, theirs.float(), rtol=1e-5, atol=1e-5)
    s = torch.tensor(SIGMAS)
    seen = Seen(clean.double(), torch.randn(clean.shape, generator=draw).double(), s)

    factors = create(backend.modules(), backend.config)
    for trained in factors.values():
        trained.up.data = torch.randn(trained.up.shape, generator=draw).double() * 0.1
        trained.down.data = trained.down.data.double()
    objective = Objective(backend.schedule, backend.config)
    t = s * 1000 if backend.family.flow else (s * 1000).long()
    cond = {**collate([backend.encode_text(caption) for caption in CAPTIONS]), "time_ids": TIME_IDS}
    with attached(backend.modules(), factors):
        predicted = backend(objective.noisy(seen.clean, seen.noise, t), t, cond)
        ours = objective.losses(predicted, seen.clean, seen.noise, t).mean()
        ours.backward()

    layers = adapted(backend, pipe, factors)
    with torch.set_grad_enabled(backend.config.text_encoder):
        text = reference.text(pipe, CAPTIONS)
    loss = reference.errors(pipe, seen, text).float().square().mean()
    loss.backward()

    gradients = [(factors[t].down.grad, layers[t].lora_A["default"].weight.grad) for t in factors]
    gradients += [(factors[t].up.grad, layers[t].lora_B["default"].weight.grad) for t in factors]
    there = [(a, b) for a, b in gradients if b is not None and b.any()]
    assert len(there) > len(gradients) * 0.8  # a last block's text layers have none
    mean = sum(float(b.norm()) for _, b in there) / len(there)
    there = [(a.view(b.shape), b) for a, b in there]
    worst = max(float((a - b).norm()) / max(float(b.norm()), mean) for a, b in there)
    return float((ours - loss).detach().abs() / loss.detach()), worst


TRAINED = ("sd15", "sdxl", "sd3", "flux")  # with their text encoders, below


@pytest.mark.parametrize("family", [family for family in REFERENCES if family not in TRAINED])
def test_one_step_equals_the_script(tmp_path: Path, models: Callable[..., Path], family: str) -> None:
    loss, gradient = compare(tmp_path, models(family), REFERENCES[family])
    assert loss < 1e-5 and gradient < 1e-5


@pytest.mark.parametrize("family", TRAINED)
def test_trained_text_encoders_equal_the_script(tmp_path: Path, models: Callable[..., Path], family: str) -> None:
    loss, gradient = compare(tmp_path, models(family), REFERENCES[family], text_encoder=True)
    assert loss < 1e-5 and gradient < 1e-5


@pytest.mark.parametrize(("family", "options"), [("sd3", {"t5_there": False}), ("flux", {"guidance": False})])
def test_variants_equal_the_script(
    tmp_path: Path, models: Callable[..., Path], family: str, options: Mapping[str, bool]
) -> None:
    loss, gradient = compare(tmp_path, models(family, **options), REFERENCES[family])
    assert loss < 1e-5 and gradient < 1e-5


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_previews_are_private(tmp_path: Path, models: Callable[..., Path], family: str) -> None:
    backend = opened(tmp_path, models(family), sample_steps=2)
    state = torch.random.get_rng_state()
    first, again, other = (backend.sample("a cat", seed) for seed in (1, 1, 2))
    assert first.size == (32, 32) and first.tobytes() == again.tobytes() != other.tobytes()
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("family", list(REFERENCES))
def test_a_run_from_pictures_to_a_file(tmp_path: Path, models: Callable[..., Path], family: str) -> None:
    pictures(tmp_path / "data", {"a": "a red cat", "b": "z"}, (48, 32))
    keys: dict[str, Any] = {"model": str(models(family)), "resolution": 32, "batch_size": 2, "steps": 2}
    keys |= {"precision": "bf16", "gradient_checkpointing": "on", "targets": "linear", "format": "diffusers"}
    keys |= {"validation_prompt": "a cat", "sample_every": 2, "sample_steps": 2}
    events = [event.event for event in train(config(tmp_path, **keys))]
    assert "sample" in events and events[-1] == "done"
    adapter = read(tmp_path / "run/tiny.safetensors")
    assert adapter.architecture is None or adapter.architecture in opened(tmp_path, models(family)).family.ids


@pytest.mark.parametrize(("channels", "shape"), [(4, (5, 32, 48)), (48, (64, 32))])
def test_videos_and_wan_22_equal_the_script(
    tmp_path: Path, models: Callable[..., Path], channels: int, shape: tuple[int, ...]
) -> None:
    """Five frames are two of latents; Wan 2.2 5B is told a time for each token, which text to video has alike."""
    model = models("wan", channels=channels)
    loss, gradient = compare(tmp_path, model, REFERENCES["wan"], shape)
    assert loss < 1e-5 and gradient < 1e-5
    latents = opened(tmp_path, model).encode_image(torch.zeros(3, *shape)).mean
    assert latents.shape == ((4, 2, 4, 6) if channels == 4 else (48, 1, 4, 2))
    assert opened(tmp_path, model).architecture == ("wan21-1.3b-t2v" if channels == 4 else "wan22-5b")


@pytest.mark.parametrize(
    ("family", "timesteps", "shift", "tokens"),
    [
        ("sd3", "logit_normal", 3.0, None),
        ("flux", "logit_normal", 3.0, (256, 4096, 0.5, 1.15)),
        ("wan", "logit_normal", 3.0, None),
        ("sd15", "uniform", 1.0, None),
    ],
)
def test_schedules_come_from_the_models_schedulers(
    tmp_path: Path,
    models: Callable[..., Path],
    family: str,
    timesteps: str,
    shift: float,
    tokens: tuple[float, ...] | None,
) -> None:
    schedule = opened(tmp_path, models(family)).schedule
    assert (schedule.timesteps, schedule.shift) == (timesteps, shift)
    found = schedule.tokens and tuple(schedule.tokens.values())
    assert found == tokens and (schedule.alphas_cumprod is None) == (family != "sd15")


def test_encoders_leave_the_device_and_come_back(tmp_path: Path, models: Callable[..., Path]) -> None:
    keys: dict[str, Any] = {"validation_prompt": "a cat", "sample_every": 1, "sample_steps": 1}
    backend = opened(tmp_path, models("flux"), **keys)
    before = backend.sample("a cat", 1).tobytes()
    backend.device = torch.device("meta")  # stands for a GPU: what is there cannot be read
    backend.reload()
    assert next(backend.parts.vae.parameters()).device.type == "meta"
    fresh = opened(tmp_path, models("flux"), **keys)
    fresh.offload()
    fresh.parts.text_encoders["t5xxl"].to("meta")  # nothing asks for it any more
    assert fresh.sample("a cat", 1).tobytes() == before


def test_blocks_are_the_repeated_ones_in_order(tmp_path: Path, models: Callable[..., Path]) -> None:
    backend = opened(tmp_path, models("flux"))
    names = {module: name for name, module in backend.parts.denoiser.named_modules()}
    assert [names[block] for block in backend.blocks()] == [
        *(f"transformer_blocks.{i}" for i in (0, 1)),
        *(f"single_transformer_blocks.{i}" for i in (0, 1)),
    ]


@pytest.mark.parametrize(
    ("family", "keys", "line"),
    [
        (
            "z_image",
            {"text_encoder": True},
            "'text_encoder' is for models with a CLIP, which Z-Image has not; leave it",
        ),
        (
            "z_image",
            {"tokenizer": "words"},
            "'tokenizer' is for models with a CLIP, which Z-Image has not; leave it out",
        ),
        ("sd3", {"guidance": 2.0}, "'guidance' is for models with a guidance embedding, which Stable Diffusion 3 has"),
        ("flux", {"negative_prompt": "dog"}, "'negative_prompt' is for models with guidance away from a prompt, which"),
        ("flux", {"frames": 5}, "'frames' is for models with frames, which FLUX.1 has not; leave it out"),
        ("wan", {"frames": 4}, "'frames' is 4; for Wan 2.1 it must be 4 n [+] 1"),
        ("sd3", {"resolution": 40}, "'resolution' is 40; for Stable Diffusion 3 it must be a multiple of 16"),
        ("sd3", {"objective": "epsilon"}, "'objective' is 'epsilon', and Stable Diffusion 3 has flow; leave it at"),
        ("sd15", {"objective": "flow"}, "'objective' is 'flow', and Stable Diffusion 1.x has epsilon or v_prediction"),
        ("sd3", {"family": "flux"}, "'family' is 'flux', and the model is Stable Diffusion 3; leave it out, or choose"),
    ],
)
def test_what_a_family_has_not_is_told(
    tmp_path: Path, models: Callable[..., Path], family: str, keys: dict[str, Any], line: str
) -> None:
    with pytest.raises(BadConfig, match=line):
        open_backend(config(tmp_path, **{"model": str(models(family)), "resolution": 32, **keys}), diffusers_names)


def test_the_family_can_be_said_where_sizes_do_not_tell(tmp_path: Path, models: Callable[..., Path]) -> None:
    assert opened(tmp_path, models("flux2"), family="flux2-klein9b").architecture == "flux2-klein9b"


@pytest.mark.parametrize(
    ("kind", "more", "line"),
    [
        ("FluxTransformer2DModel", {"in_channels": 384, "out_channels": 64}, "takes 384 channels; fill and control"),
        ("WanTransformer3DModel", {"in_channels": 36, "out_channels": 16}, "image-to-video models are not trained"),
        ("UNet2DConditionModel", {"in_channels": 9, "out_channels": 4}, "takes 9 channels; inpainting models"),
        ("Flux2Transformer2DModel", {"guidance_embeds": True}, "the model is a Flux2Transformer2DModel; this trainer"),
        ("KolorsModel", {}, "the model is a KolorsModel; this trainer knows Stable Diffusion 1.x"),
    ],
)
def test_models_of_other_kinds_are_refused(kind: str, more: dict[str, Any], line: str) -> None:
    with pytest.raises(WrongArchitecture, match=line):
        family_of({"_class_name": kind, **more})


def test_models_with_two_denoisers_are_refused(tmp_path: Path, models: Callable[..., Path]) -> None:
    shutil.copytree(models("wan"), tmp_path / "model")
    shutil.copytree(tmp_path / "model/transformer", tmp_path / "model/transformer_2")
    with pytest.raises(WrongArchitecture, match="two denoisers, .* which need an adapter each; give a folder with one"):
        opened(tmp_path, tmp_path / "model")


def test_a_denoiser_without_its_encoders_says_what_to_give(tmp_path: Path) -> None:
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(3, 1)}, tmp_path / "flux.safetensors")
    with pytest.raises(WrongArchitecture, match="a FLUX denoiser; give the model's diffusers folder or hub id"):
        load(str(tmp_path / "flux.safetensors"))


def test_a_hub_id_without_a_network_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    with pytest.raises(FileProblem, match=r"^someone/nothing: cannot be .*; check the id and the network, or give a f"):
        load("someone/nothing")


def test_texts_of_different_lengths_are_filled_up() -> None:
    made = collate([{"context": torch.ones(1, n, 2), "mask": torch.ones(1, n).bool()} for n in (3, 1)])
    assert made["context"].shape == (2, 3, 2) and made["context"].sum(dim=(1, 2)).tolist() == [6, 2]
    assert made["mask"].tolist() == [[True, True, True], [True, False, False]]


RELEASED: Mapping[str, tuple[str, dict[str, Any]]] = {  # architecture -> class and config of the released model
    "sd35-medium": (
        "SD3Transformer2DModel",
        {
            **{"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384},
            **{"qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))},
        },
    ),
    "flux": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "flux2-klein4b": (
        "Flux2Transformer2DModel",
        {
            **{"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680},
            **{"guidance_embeds": False},
        },
    ),
    "chroma": ("ChromaTransformer2DModel", {}),
    "z-image": ("ZImageTransformer2DModel", {}),
    "qwen-image": ("QwenImageTransformer2DModel", {}),
    "lumina2": ("Lumina2Transformer2DModel", {"cap_feat_dim": 2304}),
    "sana": ("SanaTransformer2DModel", {}),
    "pixart-sigma": ("PixArtTransformer2DModel", {"caption_channels": 4096}),
    "wan21-14b-t2v": ("WanTransformer3DModel", {}),
}


@pytest.mark.parametrize("architecture", list(RELEASED))
def test_presets_of_released_models_are_layers_that_adapters_name(architecture: str) -> None:
    kind, more = RELEASED[architecture]
    with torch.device("meta"):
        model = getattr(diffusers, kind)(**more)
    family, found = family_of({**model.config, "_class_name": kind})
    assert found == architecture
    names = diffusers_names(architecture, "denoiser")
    sizes = [preset_layers(family, model, word) for word in ("attention", "attention+ff", "linear", "all")]
    for layers in sizes:
        assert layers and not [name for name in layers if name not in names]
    assert [len(layers) for layers in sizes] == sorted(len(layers) for layers in sizes)
    blocks = {name.rpartition(".")[0] for name, _ in model.named_modules() if name.rpartition(".")[2] == "0"}
    assert set(family.blocks) <= blocks  # lists of modules
    attended = {name.split(".")[0] for name in sizes[0]}
    assert attended == set(family.blocks), "attention in every kind of block"


def test_language_models_saved_with_their_heads_are_read(tmp_path: Path, models: Callable[..., Path]) -> None:
    """Qwen3 is published with the head that predicts words, which no picture needs."""
    from transformers import Qwen3ForCausalLM, Qwen3Model

    shutil.copytree(models("z_image"), tmp_path / "model")
    bare = Qwen3Model.from_pretrained(tmp_path / "model/text_encoder")
    whole = Qwen3ForCausalLM(bare.config)
    whole.model.load_state_dict(bare.state_dict())
    shutil.rmtree(tmp_path / "model/text_encoder")
    whole.save_pretrained(tmp_path / "model/text_encoder")
    ours, theirs = (opened(tmp_path, path).encode_text("a red cat") for path in (tmp_path / "model", models("z_image")))
    assert torch.equal(ours["context"], theirs["context"])


def test_previews_of_zero_terminal_snr_models_are_pictures(tmp_path: Path, models: Callable[..., Path]) -> None:
    keys: dict[str, Any] = {"sample_steps": 3, "zero_terminal_snr": True}
    pictures_of = [opened(tmp_path, models("sd21"), **keys, sample_guidance=g).sample("a cat", 1) for g in (1.0, 9.0)]
    assert len({picture.tobytes() for picture in pictures_of}) == 2
    assert all(low < high for low, high in pictures_of[0].getextrema())
