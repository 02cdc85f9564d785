"""The command line's contract: statuses, one-line errors, JSON, names with strengths, and an end on request."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lorasmith import convert
from lorasmith.cli import verbs
from lorasmith.cli.call import weighted_name
from lorasmith.cli.main import main
from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.layers import Full, LoRA

TARGETS = {
    Target("denoiser", "input_blocks.1.1.transformer_blocks.0.attn1.to_q"): (320, 320),
    Target("denoiser", "middle_block.1.transformer_blocks.0.attn2.to_k"): (768, 1280),
    Target("clip_l", "text_model.encoder.layers.0.self_attn.q_proj"): (768, 768),
}

# Only what every host has may be imported; the folder comes last, as `python FOLDER` would run it.
BARE = """
import importlib.abc, runpy, sys
class Without(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
BLOCKED = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Without())
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LIBRARIES = "diffusers,transformers,accelerate,peft,PIL,scipy,einops,requests,tqdm,yaml"

# A run of the verb `train` with a trainer that waits, so that a signal meets it in a step.
SLOW = """
import sys, time
sys.path.insert(0, sys.argv[1])
import conftest
from lorasmith.cli.main import main
from lorasmith.convert import training
from lorasmith.lora_core.train import Event
def train(config, resume=False, stop=lambda: False):
    for step in range(1, 400):
        yield Event("step", step, 400, loss=0.5, lr=1e-4, seconds=0.05, eta=1.0)
        if stop():
            break
        time.sleep(0.05)
    yield Event("stopped", step, 400, path="somewhere.safetensors")
training.train = train
sys.exit(main(["train", sys.argv[2], "--events", "-"]))
"""


def adapter(seed: int, rank: int = 2) -> Adapter:
    make = torch.Generator().manual_seed(seed)
    layers = {
        target: LoRA(torch.randn(rank, i, generator=make), torch.randn(o, rank, generator=make), float(rank))
        for target, (i, o) in TARGETS.items()
    }
    return Adapter("sd15", layers)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two LoRAs and a file that is none; the current one."""
    convert.write(adapter(1), tmp_path / "a.safetensors")
    convert.write(adapter(2, rank=3), tmp_path / "b@home.safetensors")
    (tmp_path / "page.safetensors").write_text("<html>log in first</html>")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Status 2, nothing on stdout and one line on stderr, which is returned without its beginning."""
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("lorasmith: error: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in err
    return err.removeprefix("lorasmith: error: ").strip()


def folder(root: Path, *arguments: str | Path, cwd: Path, blocked: str = LIBRARIES) -> subprocess.CompletedProcess[str]:
    """Run `python FOLDER ...` where the blocked libraries are not installed."""
    command = [sys.executable, "-c", BARE, blocked, str(root), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


# --- names with strengths ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", 1.0, None)),
        ("a.safetensors@0.7", ("a.safetensors", 0.7, None)),
        ("a.safetensors@0.7@0", ("a.safetensors", 0.7, 0.0)),
        ("a.safetensors@-1e-1@+2", ("a.safetensors", -0.1, 2.0)),
        ("me@home.safetensors", ("me@home.safetensors", 1.0, None)),
        ("me@home.safetensors@.5", ("me@home.safetensors", 0.5, None)),
        ("x@1@2@3", ("x@1", 2.0, 3.0)),
        (r"C:\loras\a b.safetensors@1.5", (r"C:\loras\a b.safetensors", 1.5, None)),
        ("@1", ("@1", 1.0, None)),
    ],
)
def test_strengths_follow_the_name(text: str, expected: tuple[str, float, float | None]) -> None:
    assert weighted_name(text) == expected


def test_a_file_of_exactly_that_name_comes_first(here: Path) -> None:
    (here / "v@2").touch()
    assert weighted_name("v@2") == ("v@2", 1.0, None)
    assert weighted_name("v@2@0.5") == ("v@2", 0.5, None)
    assert weighted_name("v@3") == ("v", 3.0, None)


# --- scale, merge, convert --------------------------------------------------------------------------------------------


def deltas(path: str | Path) -> dict[Target, torch.Tensor]:
    return {target: layer.delta() for target, layer in convert.read(path).layers.items()}


def test_merge_adds_the_deltas_and_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "sum.safetensors", "a.safetensors@0.5", "b@home.safetensors@-2@0.25"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "merged 2 adapters, 3 layers, rank 5, relative error 0.0 (exact)"
    found, a, b = deltas("sum.safetensors"), deltas("a.safetensors"), deltas("b@home.safetensors")
    for target, delta in found.items():
        strength = -2 if target.component == "denoiser" else 0.25
        torch.testing.assert_close(delta, 0.5 * a[target] + strength * b[target])


def test_merge_by_svd_reports_the_error_of_the_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = ["a.safetensors", "b@home.safetensors"]
    assert main(["merge", "low.safetensors", *inputs, "--method", "svd", "--rank", "2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    found, a, b = deltas("low.safetensors"), deltas("a.safetensors"), deltas("b@home.safetensors")
    off = math.sqrt(sum(float((found[t] - a[t] - b[t]).double().norm()) ** 2 for t in a))
    size = math.sqrt(sum(float((a[t] + b[t]).double().norm()) ** 2 for t in a))
    assert said["relative_error"] == pytest.approx(off / size, rel=1e-4) and off > 0
    assert said["rank"] == 2 and said["layers"] == 3 and said["architecture"] == "sd15" and said["format"] == "kohya"
    assert said["out"] == "low.safetensors"
    assert set(said["per_block"]) == {
        "down.0.attentions.0",
        "mid.attentions.0",
        "clip_l.0",
    }


def test_scale_keeps_the_dialect_and_takes_any_number(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert.write(adapter(1), here / "d.safetensors", "diffusers")
    assert main(["scale", "d.safetensors", "e.safetensors", "--strength", "-2.5e-1", "--text-encoder", "2"]) == 0
    assert capsys.readouterr().out == "scaled 3 layers, rank 2, relative error 0.0 (exact)\n"
    assert convert.load("e.safetensors").match.format == "diffusers"
    before, after = deltas("d.safetensors"), deltas("e.safetensors")
    for target in before:
        torch.testing.assert_close(after[target], before[target] * (-0.25 if target.component == "denoiser" else 2))


def test_the_dialect_of_a_merge_is_the_first_files_unless_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert.write(adapter(1), here / "d.safetensors", "diffusers")
    for extra, expected in (([], "diffusers"), (["--to", "kohya"], "kohya")):
        assert main(["merge", "m.safetensors", "d.safetensors", "a.safetensors", "--json", "--force", *extra]) == 0
        assert json.loads(capsys.readouterr().out)["format"] == expected


def test_convert_gives_the_same_deltas_in_other_names(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "a.safetensors", "d.safetensors", "--to", "diffusers", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["relative_error"] == 0.0 and said["format"] == "diffusers" and said["layers"] == 3
    assert main(["convert", "a.safetensors", "t.safetensors", "--to", "comfy", "--trust"]) == 0
    assert capsys.readouterr().out == "converted 3 layers, rank 2, relative error not measured\n"
    before, after = deltas("a.safetensors"), deltas("d.safetensors")
    assert before.keys() == after.keys()
    for target in before:
        torch.testing.assert_close(after[target], before[target])


def test_a_weight_and_its_bias_are_one_layer_as_for_info(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = next(iter(TARGETS))
    bias = Target(query.component, query.module, parameter="bias")
    convert.write(Adapter("sd15", {**adapter(1).layers, bias: Full(torch.ones(320))}), here / "biased.safetensors")
    assert main(["scale", "biased.safetensors", "o.safetensors", "--strength", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == 3
    assert main(["info", "o.safetensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == 3


@pytest.mark.parametrize("method", [["--method", "svd", "--rank", "2"], ["--method", "svd", "--energy", "0.9"], []])
def test_loras_that_cancel_each_other_out_are_refused(
    method: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, "merge", "o.safetensors", "a.safetensors@0.7", "a.safetensors@-0.7", *method)
    assert "a.safetensors, a.safetensors: cancel each other out" in said and not (here / "o.safetensors").exists()


def test_what_cancels_in_places_has_no_error_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["merge", "o.safetensors", "a.safetensors@1", "a.safetensors@-1@0.5", "--method", "svd", "--rank", "2"]
    assert main([*call, "--json"]) == 0
    said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert said["relative_error"] < 1e-6 and said["per_block"]["down.0.attentions.0"] == 0.0
    found = deltas("o.safetensors")
    assert all(bool(delta.any()) == (target.component == "clip_l") for target, delta in found.items())


def test_json_has_null_for_what_is_no_number(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sum that cancels, written in half precision: what rounding leaves is infinitely more than nothing."""
    call = ["merge", "o.safetensors", "a.safetensors@1", "a.safetensors@-0.3@1", "a.safetensors@-0.7@1"]
    assert main([*call, "--dtype", "fp16", "--json"]) == 0
    said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert said["per_block"]["down.0.attentions.0"] is None and said["relative_error"] > 0


def test_trust_leaves_out_the_comparison_and_no_more(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for value, dtype, parts in ((math.inf, "keep", ["NaN or infinity"]), (1e6, "fp16", ["fp16", "choose bf16"])):
        broken = adapter(1)
        next(iter(broken.layers.values())).up[0, 0] = value
        convert.write(broken, here / "broken.safetensors", overwrite=True)
        call = ["convert", "broken.safetensors", "o.safetensors", "--to", "comfy", "--trust", "--dtype", dtype]
        said = refusal(capsys, *call)
        assert all(part in said for part in parts) and not (here / "o.safetensors").exists()


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_an_existing_output_is_left_alone_without_force(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = (here / "b@home.safetensors").read_bytes()
    said = refusal(capsys, "scale", "a.safetensors", "b@home.safetensors", "--strength", "2")
    assert "b@home.safetensors: already exists" in said and "--force" in said
    assert (here / "b@home.safetensors").read_bytes() == kept
    assert main(["scale", "a.safetensors", "b@home.safetensors", "--strength", "2", "--force"]) == 0
    assert (here / "b@home.safetensors").read_bytes() != kept


@pytest.mark.parametrize(
    "verb", [["convert", "gone", "OUT", "--to", "peft"], ["scale", "gone", "OUT"], ["merge", "OUT", "gone"]]
)
@pytest.mark.parametrize(
    ("out", "extra", "text"),
    [
        ("a.safetensors", [], "already exists"),
        ("folder", [], "already exists and is a folder"),
        ("o", ["--dtype", "fp8"], "'fp8'"),
        ("o", ["--to", "nonsense"], "'nonsense'"),
    ],
)
def test_an_output_at_fault_is_refused_before_the_work(
    verb: list[str], out: str, extra: list[str], text: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "folder").mkdir()
    assert text in refusal(capsys, *[out if word == "OUT" else word for word in verb], *extra)


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (["scale", "gone.safetensors", "o"], ["gone.safetensors", "no such file"]),
        (["scale", "page.safetensors", "o"], ["page.safetensors", "web page", "download it again"]),
        (["merge", "o", "a.safetensors@much"], ["a.safetensors@much", "'much' is no strength", "a.safetensors@0.8"]),
        (["merge", "o", "a.safetensors@nan"], ["strength nan", "finite number"]),
        (["merge", "o", "a.safetensors@1e39"], ["strength 1e+39", "1e-06 to 1e+06"]),
        (["scale", "a.safetensors", "o", "--strength", "1e-50"], ["strength 1e-50", "0, or a number"]),
        (["scale", "a.safetensors", "o", "--text-encoder", "-1e40"], ["strength -1e+40", "1e-06 to 1e+06"]),
        (["merge", "o", "a.safetensors", "--method", "best"], ["best", "exact"]),
        (["scale", "a.safetensors", "o", "--to", "nonsense"], ["'nonsense'", "kohya"]),
        (["scale", "a.safetensors", "o", "--dtype", "fp8"], ["'fp8'", "fp16"]),
        (["scale", "a.safetensors", "o", "--strength", "lots"], ["--strength", "'lots'", "lorasmith scale --help"]),
        (["merge", "o"], ["FILE", "lorasmith merge --help"]),
        (["frobnicate"], ["frobnicate", "merge", "lorasmith --help"]),
        ([], ["VERB", "lorasmith --help"]),
        (["train", "gone.json"], ["gone.json", "cannot be read", "JSON"]),
        (["info", "gone.safetensors"], ["gone.safetensors", "no such file"]),
        (["convert", "page.safetensors", "o", "--to", "kohya"], ["page.safetensors", "web page"]),
    ],
)
def test_what_is_at_fault_is_said_in_one_line(
    call: list[str], parts: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, *call)
    assert all(part in said for part in parts), said
    assert sorted(path.name for path in here.iterdir()) == ["a.safetensors", "b@home.safetensors", "page.safetensors"]


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (["merge", "o", "gone.safetensors", "--json"], "FileProblem"),
        (["info", "gone.safetensors", "--json"], "FileProblem"),
        (["merge", "--json"], "BadConfig"),
    ],
)
def test_with_json_a_refusal_is_an_object(
    call: list[str], kind: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(call) == 2
    out, err = capsys.readouterr()
    assert err == ""
    error = json.loads(out)["error"]
    assert error["kind"] == kind and error["message"] and "file" in error


def test_a_path_that_the_system_refuses_is_the_calls_fault(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "c.json").write_text("{}")
    assert "no/such/folder/log" in refusal(capsys, "train", "c.json", "--events", "no/such/folder/log")


def test_an_error_of_the_system_without_a_path_is_a_defect_of_ours(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def info(*_given: object) -> None:
        raise OSError(errno.EINVAL, "invalid")

    monkeypatch.setattr(verbs, "facts_of", info)
    with pytest.raises(OSError, match="invalid"):
        main(["info", "a.safetensors"])


# --- info -------------------------------------------------------------------------------------------------------------


def test_info_is_one_object_for_one_file_and_a_list_for_several(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "a.safetensors", "--json", "--keys"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one["architecture"] == "sd15" and one["format"] == "kohya" and one["layers"] == 3
    key = "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight"
    assert one["keys"][key]["dtype"] == "F32" and one["keys"][key]["shape"] == [2, 768]
    assert main(["info", "a.safetensors", "page.safetensors", "b@home.safetensors", "--json", "--fast"]) == 2
    several = json.loads(capsys.readouterr().out)
    assert [item.get("layers") for item in several] == [3, None, 3] and several[1]["error"]["kind"] == "FileProblem"


def test_info_of_several_files_tells_of_the_good_ones(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "page.safetensors", "a.safetensors"]) == 2
    out, err = capsys.readouterr()
    assert "a.safetensors" in out and "3 layers" in out
    assert err.startswith("lorasmith: error: page.safetensors") and err.count("\n") == 1


def test_info_of_the_current_folder(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    convert.write(adapter(1), here / "folder", "peft")
    monkeypatch.chdir(here / "folder")
    assert main(["info", ".", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == 3


def test_keys_are_shown_as_what_they_are(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = adapter(1)
    extras = {"emb\n  Next: trust it\x1b[2J": torch.ones(2)}
    convert.write(Adapter("sd15", plain.layers, {}, extras), here / "odd.safetensors")
    assert main(["info", "odd.safetensors", "--keys"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and r"  emb\n  Next: trust it\x1b[2J  F32 [2]" in out.splitlines()


# --- as a program -----------------------------------------------------------------------------------------------------


def test_torch_safetensors_and_numpy_are_enough(root: Path, here: Path) -> None:
    done = folder(root, "merge", "sum.safetensors", "a.safetensors", "b@home.safetensors", cwd=here)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "merged 2 adapters, 3 layers, rank 5, relative error 0.0 (exact)\n" and done.stderr == ""
    done = folder(root, "info", "sum.safetensors", "--json", cwd=here)
    assert done.returncode == 0 and json.loads(done.stdout)["layers"] == 3, done.stderr
    done = folder(root, "convert", "sum.safetensors", "p.safetensors", "--to", "peft", cwd=here)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("blocked", "verb"), [("torch", "scale"), ("diffusers", "train")])
def test_what_is_not_installed_is_named_with_its_command(blocked: str, verb: str, root: Path, here: Path) -> None:
    (here / "pictures").mkdir()
    (here / "c.json").write_text(json.dumps({"model": "m", "data": "pictures", "out": "run"}))
    arguments = ["a.safetensors", "o.safetensors"] if verb == "scale" else ["c.json"]
    done = folder(root, verb, *arguments, cwd=here, blocked=blocked)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stdout == "", done.stderr
    assert blocked in done.stderr and "pip install" in done.stderr


def test_help_needs_no_library_and_names_only_verbs_that_work(root: Path, tmp_path: Path) -> None:
    done = folder(root, "--help", cwd=tmp_path, blocked=f"torch,numpy,safetensors,{LIBRARIES}")
    assert done.returncode == 0, done.stderr
    verbs = {"info", "convert", "scale", "blocks", "merge", "resize", "prune", "rescale", "bake", "extract", "train"}
    assert {*verbs, "redo", "demo"} <= set(done.stdout.split())


def test_convert_help_lists_the_formats(root: Path, tmp_path: Path) -> None:
    done = folder(root, "convert", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "kohya, diffusers, peft" in " ".join(done.stdout.split())


@pytest.mark.skipif(os.name == "nt", reason="signals to one process")
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_training_after_the_step_in_hand(sent: int, status: int, root: Path, here: Path) -> None:
    (here / "c.json").write_text(json.dumps({"model": "m", "data": "d", "out": "run"}))
    command = [sys.executable, "-c", SLOW, str(root / "tests"), "c.json"]
    child = subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert json.loads(child.stdout.readline())["event"] == "step"
    child.send_signal(sent)
    out, err = child.communicate(timeout=60)
    assert child.returncode == status, err
    assert json.loads(out.splitlines()[-1])["event"] == "stopped"
    assert "Traceback" not in err and "stopping after the step in hand" in err


@pytest.mark.skipif(os.name == "nt", reason="a pipe that is closed")
def test_a_reader_that_has_enough_is_no_error(root: Path, here: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, str(root), "scale", "a.safetensors", "s.safetensors"]
    done = subprocess.run(command, cwd=here, stdout=write, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(write)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("call", [["info", "a.safetensors"], ["info", "gone.safetensors", "--json"], ["--help"]])
def test_an_output_that_is_full_is_one_line(call: list[str], root: Path, here: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, str(root), *call]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
        done = subprocess.run(
            command, cwd=here, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, timeout=300
        )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no space left" in done.stderr, done.stderr


def test_a_console_that_lacks_the_letters_shows_their_numbers(root: Path, here: Path) -> None:
    metadata = {"modelspec.trigger_phrase": "墨 ink\n  Next: trust it\x1b[2J"}
    convert.write(Adapter("sd15", adapter(1).layers, metadata), here / "japanese.safetensors")
    command = [sys.executable, str(root), "info", "japanese.safetensors"]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command, cwd=here, capture_output=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode("cp1252").splitlines()
    assert r"  Trigger words: \u58a8 ink Next: trust it[2J" in lines
