"""What we write, in ComfyUI's own loader: for every family that it has, on its own model, no key is left unread."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import comfy_server
import pytest

pytestmark = pytest.mark.host("comfyui")

LISTS = {  # family -> the parameter list by which ComfyUI recognises the model; without one its table serves
    "sd15": "sd15.ldm.unet",
    "sd21": "sd21.ldm.unet",
    "sdxl": "sdxl.ldm.unet",
    "sdxl-refiner": "sdxl-refiner.ldm.unet",
    "flux": "flux-dev.bfl",
    "flux2-dev": "flux2-dev.bfl",
    "flux2-klein4b": "flux2-klein4b.bfl",
    "flux2-klein9b": "flux2-klein9b.bfl",
    "chroma": "chroma.bfl",
    "sd3-medium": "sd3-medium.mmdit",
    "sd35-medium": "sd35-medium.mmdit",
    "sd35-large": "sd35-large.mmdit",
    "z-image": "z-image.lumina",
    "qwen-image": "qwen-image.comfy",
    "wan21-14b-t2v": "wan21-14b-t2v.wan",
    "wan21-14b-i2v": "wan21-14b-i2v.wan",
    "wan21-1.3b-t2v": "wan21-1.3b-t2v.wan",
    "wan22-5b": "wan22-5b-ti2v.wan",
    "hunyuan-video": "hunyuan-video.tencent",
    "hunyuan-video15": "hunyuan-video15.tencent",
    "hunyuan-image21": "hunyuan-image21.tencent",
    "ltx-video": "ltx-video-2b.comfy",
    "ltx2": "ltx2.comfy",
    "anima": "anima.cosmos",
    "lumina2": "lumina2.lumina",
    "auraflow": "auraflow.comfy",
    "cosmos-predict2": "cosmos-predict2-2b.nvidia",
    "hidream": "hidream-i1.comfy",
    "hunyuandit": "hunyuandit.comfy",
    "kandinsky5": "kandinsky5.comfy",
    "mochi": "mochi.genmo",
    "omnigen2": "omnigen2.comfy",
    "pixart-sigma": "pixart-sigma.pixart",
    "stable-cascade-c": "stable-cascade-c.sai",
}
FAMILIES = (  # all whose table names ComfyUI's own model
    *LISTS,
    *("ace-step", "cogvideox", "ernie-image-8b", "ideogram4", "krea2", "longcat-image", "minimax-h3", "ovis-image"),
    "skyreels-v2",
)
ABSENT = {  # names of a table that ComfyUI's model has not: how they begin
    "t5xxl": ("encoder.embed_tokens",),  # the same weight as `shared`
    "umt5xxl": ("encoder.embed_tokens",),
    "pixart-sigma denoiser": ("csize_embedder.", "ar_embedder."),  # PixArt-Alpha's alone
    "ovis-image denoiser": ("transformer_blocks.",),  # Diffusers fuses two weights; they stand under its name
}
UNLISTED = {  # linears and convolutions of ComfyUI's models that a table leaves out: how they begin
    "clip_l": ("text_projection",),  # there, but no part of the released models
    "clip_h": ("text_projection",),
    "qwen25_7b": ("visual.",),
    "qwen3_8b": ("model.lm_head",),
    "text_projection": ("gemma3_12b.",),
    "ace-step denoiser": ("encoder.", "tokenizer.", "detokenizer."),
    "ovis-image denoiser": ("double_blocks.",),
}
NOT_READ = {  # kohya names of text encoders for which ComfyUI has no word; how many of the layers it reads
    "umt5xxl kohya": 0,  # Wan
    **{f"{part} kohya": 0 for part in ("llama", "qwen25_7b", "clip_l")},  # in pairs without a CLIP-G
    "clip_g kohya": 192,  # no text projection where CLIP-G is alone
    "text_projection kohya": 0,
}
WITHOUT = {  # family -> text encoders' entries in NOT_READ that hold for it
    "sdxl-refiner": ("clip_g kohya",),
    **dict.fromkeys(
        ("wan21-14b-t2v", "wan21-14b-i2v", "wan21-1.3b-t2v", "wan22-5b", "skyreels-v2"), ("umt5xxl kohya",)
    ),
    "hunyuan-video": ("llama kohya", "clip_l kohya"),
    "hunyuan-video15": ("qwen25_7b kohya",),
    "hunyuan-image21": ("qwen25_7b kohya",),
    "kandinsky5": ("qwen25_7b kohya",),
    "hidream": ("llama kohya",),
    "ltx2": ("text_projection kohya",),
}


@pytest.fixture(scope="module")
def findings(host: Path, root: Path) -> dict:
    try:
        python = comfy_server.python()
    except comfy_server.Unavailable as reason:
        pytest.skip(str(reason))
    script = Path(__file__).with_name("families_in_process.py")
    done = subprocess.run(
        [python, str(script), str(host), str(root), str(root / "tests/models"), json.dumps(LISTS), *FAMILIES],
        env=comfy_server.environment(), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_comfyui_reads_every_key_of_our_files_for_its_own_model(findings: dict, family: str) -> None:
    found = findings[family]
    assert found.get("class"), found
    assert found["loaded"]["denoiser comfy"]["layers"] > 80
    for name, result in found["loaded"].items():
        few = name in WITHOUT.get(family, ())
        assert "refused" not in result, (name, result)
        assert result["wrong"] == [], name
        assert result["patched"] == (NOT_READ[name] if few else result["layers"]), (name, result["missed"][:4])
        assert few or result["missed"] == [], (name, result["missed"][:4])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_of_a_table_is_comfyuis_own_and_no_linear_of_its_model_is_left_out(
    findings: dict, family: str
) -> None:
    for part, named in findings[family]["named"].items():
        assert named is not None, f"ComfyUI has no {part}"
        here = f"{family} {part}"
        absent, unlisted = (table.get(here, table.get(part, ("!",))) for table in (ABSENT, UNLISTED))
        assert [name for name in named["absent"] if not name.startswith(absent)] == [], part
        assert [name for name in named["unlisted"] if not name.startswith(unlisted)] == [], part
        assert named["shapes"] == [], part
