"""The nodes in a real ComfyUI, through its HTTP interface."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from comfy_client import Comfy, Interrupted, Refused
from graphs import CLIP, MODEL, loader, node, sampled, train
from PIL import Image
from safetensors import safe_open

pytestmark = pytest.mark.host("comfyui")


def read(name: str) -> dict:
    return node("LorasmithLoadLora", lora=f"{name}.safetensors")


def apply(lora: str, model: list = MODEL, clip: list = CLIP, strength: float = 1.0, **more) -> dict:
    strengths = {"strength_model": strength, "strength_clip": strength}
    return node("LorasmithApplyLora", lora=[lora, 0], model=model, clip=clip, **strengths, **more)


def save(lora: str, name: str, format: str, dtype: str = "keep") -> dict:
    return node("LorasmithSaveLora", lora=[lora, 0], filename_prefix=name, format=format, dtype=dtype)


def picture(base: Path, outputs: dict, name: str) -> bytes:
    entry = outputs[f"{name} saved"]["images"][0]
    return Image.open(base / "output" / entry["filename"]).tobytes()


def test_every_node_is_there_with_tooltips_and_help(comfy: Comfy, root: Path) -> None:
    described = {name: info for name, info in comfy.call("/object_info").items() if name.startswith("Lorasmith")}
    assert set(described) == {path.stem for path in (root / "web/docs").glob("*.md")}
    for name, info in described.items():
        assert info["category"] == "Lorasmith" and info["description"]
        for kind in ("required", "optional"):
            assert all(options[1]["tooltip"] for options in info["input"].get(kind, {}).values()), name
        page = comfy.text(f"/extensions/lora.smith-1.2/docs/{name}.md")
        assert page == (root / "web/docs" / f"{name}.md").read_text(encoding="utf-8")


def test_the_example_workflows_are_offered(comfy: Comfy, root: Path) -> None:
    offered = comfy.call("/workflow_templates")["lora.smith-1.2"]
    assert sorted(offered) == sorted(path.stem for path in (root / "example_workflows").glob("*.json"))


def test_load_scale_merge_apply_and_sample(comfy: Comfy, base: Path) -> None:
    graph = {
        **loader(),
        "a": read("first"),
        "b": read("second"),
        "half": node("LorasmithScaleLora", lora=["a", 0], strength=0.5, text_encoder=0.5),
        "sum": node(
            "LorasmithMergeLoras", lora_a=["half", 0], strength_a=2.0, lora_b=["b", 0], strength_b=0.5,
            strength_c=1.0, strength_d=1.0, method="exact", rank=32,
        ),
        "merged": apply("sum"),
        "one": apply("a"),
        "two": apply("b", ["one", 0], ["one", 1], 0.5),
        "saved": save("sum", "sums/both", "diffusers"),
        "said": node("LorasmithInspectLora", lora=["sum", 0], model=MODEL, clip=CLIP),
        **sampled(MODEL, CLIP, "plain"),
        **sampled(["merged", 0], ["merged", 1], "merged"),
        **sampled(["two", 0], ["two", 1], "stacked"),
    }  # fmt: skip
    outputs = comfy.run(graph)
    plain, merged, stacked = (picture(base, outputs, name) for name in ("plain", "merged", "stacked"))
    assert plain != merged
    assert (
        max(abs(a - b) for a, b in zip(merged, stacked, strict=True)) <= 2
    )  # one merge is the two in turn, rounding aside
    assert "relative error" in outputs["saved"]["text"][0]
    assert (base / "output/loras/sums/both.safetensors").is_file()
    assert "225 of 225 modules match" in outputs["said"]["text"][0]


def test_the_host_loads_what_the_save_node_wrote(comfy: Comfy, base: Path) -> None:
    graph = {
        "a": read("first"),
        "saved": save("a", "again", "kohya"),
        "twice": save("a", "again", "comfy", "fp16"),
    }
    outputs = comfy.run(graph)
    names = sorted(outputs[key]["text"][0].partition(":")[0] for key in ("saved", "twice"))
    assert names == ["again.safetensors", "again_00001.safetensors"]
    direct = {
        **loader(),
        "host": node("LoraLoader", model=MODEL, clip=CLIP, lora_name=names[0], strength_model=1.0, strength_clip=1.0),
        "ours": apply("back"),
        "back": node("LorasmithLoadLora", lora=names[1]),
        **sampled(["host", 0], ["host", 1], "host"),
        **sampled(["ours", 0], ["ours", 1], "ours"),
    }
    pictures = comfy.run(direct)
    assert picture(base, pictures, "host") == picture(base, pictures, "ours")


def test_lora_model_goes_both_ways(comfy: Comfy) -> None:
    graph = {
        **loader(),
        "a": read("first"),
        "out": node("LorasmithToLoraModel", lora=["a", 0]),
        "host": node("LoraModelLoader", model=MODEL, lora=["out", 0], strength_model=1.0, bypass=False),
        "in": node("LorasmithFromLoraModel", lora_model=["out", 0]),
        "said": node("LorasmithInspectLora", lora=["in", 0], model=["host", 0]),
    }
    assert "177 of 177 modules match" in comfy.run(graph)["said"]["text"][0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sdxl", "was made for Stable Diffusion XL"),
        ("wide", "another shape"),
        ("broken", "broken.safetensors"),
    ],
)
def test_a_lora_at_fault_is_one_line_on_the_node(comfy: Comfy, name: str, words: str) -> None:
    applied = apply("a")
    with pytest.raises(Refused) as caught:
        comfy.run({**loader(), "a": read(name), "applied": applied, **sampled(["applied", 0], ["applied", 1], "never")})
    assert words in caught.value.message and "\n" not in caught.value.message


def test_allow_partial_applies_the_rest(comfy: Comfy, base: Path) -> None:
    applied = apply("a", allow_partial=True)
    outputs = comfy.run({**loader(), "a": read("wide"), "part": applied, **sampled(["part", 0], ["part", 1], "part")})
    assert (base / "output" / outputs["part saved"]["images"][0]["filename"]).is_file()


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../escaped", "C:\\escaped", ""])
def test_a_save_never_leaves_its_folder(comfy: Comfy, base: Path, name: str) -> None:
    before = sorted(base.rglob("escaped*"))
    with pytest.raises(Refused) as caught:
        saved = save("a", name, "kohya")
        comfy.run({"a": read("first"), "saved": saved})
    assert "output" in caught.value.message or "loras" in caught.value.message
    assert sorted(base.rglob("escaped*")) == before


def test_train_two_steps_save_load_and_apply(comfy: Comfy, base: Path) -> None:
    graph = {
        **loader(),
        "train": train(text_encoder=True),
        "applied": apply("train"),
        **sampled(["applied", 0], ["applied", 1], "trained"),
    }
    outputs = comfy.run(graph)
    assert "2 steps" in outputs["train"]["text"][0]
    with safe_open(base / "output/loras/trained.safetensors", "pt") as file:
        assert file.metadata()["ss_output_name"] == "trained"
        assert any(float(file.get_tensor(key).abs().max()) > 0 for key in file.keys() if "lora_up" in key)
        assert {key.split("_")[1] for key in file.keys()} == {"unet", "te"}
    again = {
        **loader(),
        "a": read("trained"),
        "said": node("LorasmithInspectLora", lora=["a", 0], model=MODEL, clip=CLIP),
    }
    assert "176 of 176 modules match" in comfy.run(again)["said"]["text"][0]


def test_cancel_keeps_what_is_trained_and_resume_goes_on(comfy: Comfy, base: Path) -> None:
    log = base / "output/lorasmith/long/log.jsonl"
    job = comfy.submit({**loader(), "train": train(name="long", steps=400)})
    _await(lambda: log.exists() and '"step"' in log.read_text().partition("\n")[2])
    comfy.call("/interrupt", {})
    with pytest.raises(Interrupted):
        comfy.result(job)
    assert (base / "output/loras/long.safetensors").is_file()
    assert '"stopped"' in log.read_text().splitlines()[-1]
    outputs = comfy.run({**loader(), "train": train(name="long", steps=_steps(log) + 2, resume=True)})
    assert "long_00001.safetensors" in outputs["train"]["text"][0]


def test_a_folder_without_pictures_is_one_line(comfy: Comfy, base: Path) -> None:
    folder = base / "input/uncaptioned"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "alone.png")
    with pytest.raises(Refused, match="no caption") as caught:
        comfy.run({**loader(), "train": train(pictures="uncaptioned", name="none")})
    assert "\n" not in caught.value.message


def _steps(log: Path) -> int:
    return sum('"event": "step"' in line for line in log.read_text().splitlines())


def _await(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.05)
