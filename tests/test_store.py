"""Laws of the store: what is written is read back, nothing is half-written, and no pickle runs code."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from lorasmith.lora_core import store
from lorasmith.lora_core.errors import BadConfig, FileProblem, LorasmithError, UnsafeFile, UnsupportedLayer
from lorasmith.lora_core.header import TORCH_DTYPES

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def sample(dtypes: tuple[torch.dtype, ...] = FLOATS + WHOLE) -> dict[str, Tensor]:
    """A tensor of each dtype, and the awkward ones: scalar, empty, transposed, sliced, two that share memory."""
    generator = torch.Generator().manual_seed(0)
    tensors = {f"{dtype}"[6:]: torch.randint(0, 2, (3, 5), generator=generator).to(dtype) for dtype in dtypes}
    wide = torch.randn(6, 4, generator=generator)
    return {
        **tensors,
        "scalar": torch.tensor(8.0),
        "half.alpha": torch.tensor(4.0, dtype=torch.float16),
        "empty": torch.empty(0, 3),
        "transposed": wide.T,
        "sliced": wide[::2, 1:],
        "shared": wide,
        "ünïcode": torch.ones(2),
    }


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """The same keys, dtypes, shapes and bits."""
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert found[key].dtype == tensor.dtype and found[key].shape == tensor.shape, key
        assert torch.equal(found[key].double(), tensor.double()), key


def refused(error: type[LorasmithError], path: Path | str) -> str:
    """The one line with which both `load` and `header` refuse a file."""
    with pytest.raises(error) as load_refusal:
        store.load(path)
    with pytest.raises(error) as header_refusal:
        store.header(path)
    message = load_refusal.value.message
    assert message == header_refusal.value.message and "\n" not in message
    assert load_refusal.value.file == str(path)
    return message


# --- safetensors: reading and writing -------------------------------------------------------------------------------


def test_what_is_saved_is_loaded_and_the_safetensors_package_agrees(tmp_path: Path) -> None:
    path = store.save(tmp_path / "new" / "a.safetensors", sample(), {"ss_x": 'é"\\\n\u2028', "n": "1"})
    stored = store.load(path)
    assert_equal(stored.tensors, sample())
    assert_equal(safetensors.torch.load_file(path), sample())
    assert stored.metadata == {"ss_x": 'é"\\\n\u2028', "n": "1", "format": "pt"}
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == stored.metadata


def test_the_layout_is_the_one_that_the_safetensors_package_writes(tmp_path: Path) -> None:
    metadata = {"format": "pt", "ss_x": "é\x01\x7f"}
    path = store.save(tmp_path / "a.safetensors", sample(), metadata)
    contiguous = {key: tensor.clone().contiguous() for key, tensor in sample().items()}
    theirs, ours = safetensors.torch.save(contiguous, metadata), path.read_bytes()
    length = int.from_bytes(theirs[:8], "little")
    assert ours[:8] == theirs[:8] and ours[8 + length :] == theirs[8 + length :]
    assert json.loads(ours[8 : 8 + length]) == json.loads(theirs[8 : 8 + length])


def test_every_dtype_of_the_table_that_torch_has_makes_the_round_trip(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(8, dtype=torch.uint8).view(dtype) for name, dtype in TORCH_DTYPES.items()}
    path = store.save(tmp_path / "a.safetensors", tensors)
    assert {key: tensor.dtype for key, tensor in store.load(path).tensors.items()} == {
        key: tensor.dtype for key, tensor in tensors.items()
    }


def test_header_says_shapes_dtypes_and_metadata(tmp_path: Path) -> None:
    header = store.header(store.save(tmp_path / "a.safetensors", sample(), {"a": "b"}))
    assert header.shapes == {key: tuple(tensor.shape) for key, tensor in sample().items()}
    assert header.dtypes["float16"] == "F16" and header.dtypes["bfloat16"] == "BF16" and header.dtypes["bool"] == "BOOL"
    assert header.metadata == {"a": "b", "format": "pt"}
    assert header.parameters == sum(tensor.numel() for tensor in sample().values())


def test_loaded_tensors_hold_no_file(tmp_path: Path) -> None:
    path = store.save(tmp_path / "a.safetensors", {"a": torch.ones(1000)})
    tensors = store.load(path).tensors
    path.write_bytes(b"")
    assert float(tensors["a"].sum()) == 1000
    assert_equal(store.load(store.save(path, tensors, overwrite=True)).tensors, {"a": torch.ones(1000)})


@pytest.mark.parametrize("inference", [False, True])
def test_tensors_with_gradients_or_from_inference_mode_are_written(tmp_path: Path, inference: bool) -> None:
    with torch.inference_mode(inference):
        tensors = {"a": torch.nn.Parameter(torch.ones(2, 2)).T if not inference else torch.ones(2, 2).T}
        assert_equal(store.load(store.save(tmp_path / "a", tensors)).tensors, {"a": torch.ones(2, 2)})


# --- files at fault -------------------------------------------------------------------------------------------------


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = store.save(tmp_path / "whole.safetensors", {"a": torch.ones(40), "b": torch.ones(3).half()}).read_bytes()
    data = 8 + int.from_bytes(whole[:8], "little")
    path = tmp_path / "cut.safetensors"
    for end in (0, 1, 7, 8, 9, data // 2, data - 1, data, data + 1, data + 160, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert "download it again" in refused(FileProblem, path), end
    message = f"cut.safetensors: ends after {len(whole) - 1} of {len(whole)} bytes: download it again"
    assert refused(FileProblem, path) == message


def test_a_file_with_bytes_too_many_is_refused(tmp_path: Path) -> None:
    path = store.save(tmp_path / "a.safetensors", {"a": torch.ones(4)})
    path.write_bytes(path.read_bytes() + b"xyz")
    assert "has 3 bytes more than its header describes" in refused(FileProblem, path)


BAD_HEADERS = {
    "not JSON": b'{"a": ',
    "not a table": b'{"a": 1}',
    "deep": b'{"a":' + b"[" * 100_000,
    "no dtype": b'{"a":{"shape":[1],"data_offsets":[0,4]}}',
    "dtype in a list": b'{"a":{"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}}',
    "dtype a table": b'{"a":{"dtype":{},"shape":[1],"data_offsets":[0,4]}}',
    "unknown dtype": b'{"a":{"dtype":"F7","shape":[1],"data_offsets":[0,4]}}',
    "negative": b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
    "wrong size": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
    "overflow": b'{"a":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}}',
    "size beyond torch": b'{"a":{"dtype":"F32","shape":[9223372036854775808,0],"data_offsets":[0,0]},'
    b'"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    "count beyond torch": b'{"a":{"dtype":"F32","shape":[1099511627776,1099511627776,0],"data_offsets":[0,0]},'
    b'"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    "dimensions beyond torch": b'{"a":{"dtype":"F32","shape":[' + b"1," * 64 + b'1],"data_offsets":[0,4]}}',
    "hole": b'{"a":{"dtype":"F16","shape":[1],"data_offsets":[2,4]}}',
    "overlap": b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
    b'"b":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}}',
    "metadata": b'{"__metadata__":[1],"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(BAD_HEADERS[name]).to_bytes(8, "little") + BAD_HEADERS[name] + bytes(4))
    assert refused(FileProblem, path).startswith("a.safetensors: ")


FOREIGN = {
    b"<!DOCTYPE html>\n<html><body>Sign in</body></html>": "is a web page",
    b"\n  <html lang=en>": "is a web page",
    b'{"error":"Unauthorized","message":"log in"}': "is a JSON text",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n": "git lfs pull",
    b"GGUF\x03\x00\x00\x00\x00\x00\x00\x00": "is a GGUF model",
    b"\x89PNG\r\n\x1a\n and so on": "is neither a safetensors file nor one of torch.save",
    bytes(range(200, 256)): "is neither a safetensors file nor one of torch.save",
}


@pytest.mark.parametrize("content", FOREIGN, ids=list(FOREIGN.values()))
def test_what_is_no_weights_file_is_called_by_its_name(tmp_path: Path, content: bytes) -> None:
    for name in ("a.safetensors", "a.pt"):
        (tmp_path / name).write_bytes(content)
        assert FOREIGN[content] in refused(FileProblem, tmp_path / name)


def test_a_header_length_that_looks_like_text_is_no_text(tmp_path: Path) -> None:
    length = int.from_bytes(b'{"', "little")  # 8827: the file's first bytes are those of a JSON text
    path = store.save(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    size = int.from_bytes(path.read_bytes()[:8], "little")
    text = path.read_bytes()[8 : 8 + size].ljust(length)
    path.write_bytes(length.to_bytes(8, "little") + text + path.read_bytes()[8 + size :])
    assert_equal(store.load(path).tensors, {"a": torch.ones(1)})


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(FileProblem, tmp_path / "none.safetensors")
    assert "is a folder" in refused(FileProblem, tmp_path)
    for function in (store.sha256, store.autov2, store.autov3):
        with pytest.raises(FileProblem, match="no such file"):
            function(tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", ["a\0b.safetensors", "a\ud800.safetensors"])
def test_names_that_no_system_takes_are_refused(tmp_path: Path, name: str) -> None:
    assert "no file can have such a name" in refused(FileProblem, tmp_path / name)
    with pytest.raises(FileProblem, match="no file can have such a name"):
        store.save(tmp_path / name, {"a": torch.ones(1)})
    with pytest.raises(FileProblem, match="no file can have such a name"):
        store.sha256(tmp_path / name)


# --- atomic writing -------------------------------------------------------------------------------------------------


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_existing_file_is_kept_without_overwrite_and_replaced_with_it(tmp_path: Path) -> None:
    path = store.save(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    before = listing(tmp_path)
    with pytest.raises(FileProblem, match="already exists; choose another name or allow overwriting"):
        store.save(path, {"a": torch.zeros(1)})
    assert listing(tmp_path) == before
    store.save(path, {"a": torch.zeros(1)}, overwrite=True)
    assert list(listing(tmp_path)) == ["a.safetensors"] and float(store.load(path).tensors["a"]) == 0


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_file_that_appears_while_writing_is_not_clobbered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    path, fsync = tmp_path / "a.safetensors", os.fsync

    def interfere(descriptor: int) -> None:
        path.write_bytes(b"theirs")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", interfere)
    if not hard_links:
        monkeypatch.setattr(os, "link", raiser(OSError(errno.EPERM, "no hard links")))
    with pytest.raises(FileProblem, match="already exists"):
        store.save(path, {"a": torch.ones(1)})
    assert listing(tmp_path) == {"a.safetensors": b"theirs"}


def test_a_file_system_without_hard_links_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", raiser(OSError(errno.EOPNOTSUPP, "no hard links")))
    path = store.save(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    assert list(listing(tmp_path)) == ["a.safetensors"] and float(store.load(path).tensors["a"]) == 1


def raiser(error: BaseException):  # type: ignore[no-untyped-def]
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    return fail


FAILURES = {
    "disk full": (OSError(errno.ENOSPC, "full"), FileProblem, "no space left on the disk"),
    "read-only": (OSError(errno.EROFS, "read-only"), FileProblem, "cannot be written, the folder is read-only"),
    "in use": (PermissionError(errno.EACCES, "denied"), FileProblem, "another program holds the file"),
    "device": (OSError(errno.EIO, "Input/output error"), FileProblem, "Input/output error"),
    "Ctrl-C": (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    "defect": (ZeroDivisionError("a defect"), ZeroDivisionError, "a defect"),
}


@pytest.mark.parametrize("function", ["fsync", "replace", "link"])
@pytest.mark.parametrize("name", FAILURES)
def test_whatever_interrupts_the_writing_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, function: str
) -> None:
    error, wanted, text = FAILURES[name]
    overwrite = function != "link"
    path = tmp_path / "a.safetensors"
    if overwrite:
        store.save(path, {"a": torch.ones(1)})
    before = listing(tmp_path)
    monkeypatch.setattr(os, function, raiser(error))
    if function == "link":
        monkeypatch.setattr(os, "replace", raiser(error))  # what a save without hard links falls back to
    with pytest.raises(wanted, match=text) as refusal:
        store.save(path, {"a": torch.zeros(1)}, overwrite=overwrite)
    assert "\n" not in str(refusal.value)
    assert listing(tmp_path) == before


def test_a_tensor_that_cannot_be_read_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError):
        store.save(tmp_path / "a.safetensors", {"a": torch.ones(9), "b": torch.empty(9, device="meta")})
    assert listing(tmp_path) == {}


def test_a_write_to_a_full_device_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_full(path: Path, mode: str = "r") -> io.IOBase:
        Path.touch(path)
        return open("/dev/full", "wb", buffering=0)  # noqa: SIM115

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with monkeypatch.context() as patch, pytest.raises(FileProblem, match="no space left"):
        patch.setattr(Path, "open", open_full)
        store.save(tmp_path / "a.safetensors", {"a": torch.ones(4)})
    assert listing(tmp_path) == {}


def test_targets_that_cannot_be_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(FileProblem, match="is a folder; name a file inside it"):
        store.save(tmp_path, {"a": torch.ones(1)}, overwrite=True)
    with pytest.raises(FileProblem, match="cannot be made a folder"):
        store.save(tmp_path / "file" / "a.safetensors", {"a": torch.ones(1)})
    with pytest.raises(FileProblem, match="cannot be written"):
        store.save(tmp_path / ("n" * 300), {"a": torch.ones(1)})
    with pytest.raises(FileProblem, match="no tensor"):
        store.save(tmp_path / "a.safetensors", {})
    assert listing(tmp_path) == {"file": b"x"}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(FileProblem, match="cannot be written"):
        store.save(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    tmp_path.chmod(0o755)


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_the_file_has_the_permissions_of_any_new_file_and_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    path = store.save(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    assert store.save(link, {"a": torch.zeros(1)}, overwrite=True) == link
    assert link.is_symlink() and float(store.load(path).tensors["a"]) == 0


def test_what_the_format_cannot_hold_is_refused_before_writing(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="metadata 'n' is int"):
        store.save(tmp_path / "a.safetensors", {"a": torch.ones(1)}, {"n": 1})  # type: ignore[dict-item]
    with pytest.raises(UnsupportedLayer, match="'a' is torch.complex128"):
        store.save(tmp_path / "a.safetensors", {"a": torch.ones(1, dtype=torch.complex128)})
    assert listing(tmp_path) == {}


# --- torch.save files -----------------------------------------------------------------------------------------------


def torch_file(path: Path, value: object, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_give_what_torch_load_gives(tmp_path: Path, legacy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    value = sample(FLOATS[:4] + WHOLE)
    path = torch_file(tmp_path / "a.pt", value, legacy)
    wanted = torch.load(path, weights_only=True)
    monkeypatch.setattr(torch, "load", raiser(RuntimeError("patched by a host")))
    stored = store.load(path)
    assert_equal(stored.tensors, wanted)
    assert store.header(path).shapes == {key: tuple(tensor.shape) for key, tensor in wanted.items()}
    assert store.header(path).dtypes["bfloat16"] == "BF16"


def test_torch_files_of_eight_bit_floats_are_read(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6).to(torch.float8_e4m3fn).reshape(2, 3)}
    assert_equal(store.load(torch_file(tmp_path / "a.pt", tensors)).tensors, tensors)


@pytest.mark.parametrize("legacy", [False, True])
def test_modules_lists_and_nested_dicts_are_read(tmp_path: Path, legacy: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    found = store.load(torch_file(tmp_path / "a.pt", module.state_dict(), legacy)).tensors
    assert_equal(found, dict(module.state_dict()))
    nested = {"state_dict": OrderedDict(w=torch.ones(2)), "epoch": 3, "hyper": {"lr": 0.1}}
    assert_equal(store.load(torch_file(tmp_path / "b.ckpt", nested, legacy)).tensors, {"w": torch.ones(2)})
    weights = [torch.nn.Parameter(torch.ones(4, 1)), torch.zeros(1, 3)]
    assert list(store.load(torch_file(tmp_path / "lora.pt", weights, legacy)).tensors) == ["0", "1"]
    mixed = store.load(torch_file(tmp_path / "c.bin", {"unet": {"a": torch.ones(1)}, "step": 7, "name": "x"}, legacy))
    assert list(mixed.tensors) == ["unet.a"] and mixed.metadata == {"step": "7", "name": "x"}


def test_the_content_decides_and_a_pickle_in_disguise_is_refused(tmp_path: Path) -> None:
    path = store.save(tmp_path / "really_safetensors.pt", {"a": torch.ones(1)})
    assert_equal(store.load(path).tensors, {"a": torch.ones(1)})
    for legacy in (False, True):
        disguised = torch_file(tmp_path / "a.safetensors", {"a": torch.ones(1)}, legacy)
        assert "is a zip or pickle and no safetensors file" in refused(FileProblem, disguised)


class Malicious:
    """Creates a file when Python unpickles it."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.canary),))


def handwritten(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that make Python call os.mkdir by each of the opcodes that can; and the global that each asks for."""
    name = str(canary).encode()
    unicode = b"X" + struct.pack("<I", len(name)) + name
    return {
        "REDUCE": (b"\x80\x02cos\nmkdir\n" + unicode + b"\x85R.", "os.mkdir"),
        "INST": (b"\x80\x02(" + unicode + b"ios\nmkdir\n.", "os.mkdir"),
        "OBJ": (b"\x80\x02(cos\nmkdir\n" + unicode + b"o.", "os.mkdir"),
        "STACK_GLOBAL": (b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + unicode + b"\x85R.", "os.mkdir"),
        "NEWOBJ": (b"\x80\x02cpathlib\nPath\n)\x81.", "pathlib.Path"),
        "eval": (b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", "builtins.eval"),
        "dotted": (b"\x80\x04\x8c\x05torch\x8c\x0cnn.Module.to\x93.", "torch.nn.Module.to"),
        "torch": (b"\x80\x02ctorch\nload\n" + unicode + b"\x85R.", "torch.load"),
        "late import": (b"\x80\x02ctorch\n_dynamo\n.", "torch._dynamo"),
    }


def zip_of(path: Path, data: bytes, storages: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
    return path


def legacy_of(path: Path, data: bytes) -> Path:
    with path.open("wb") as file:
        for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(value, file, protocol=2)
        file.write(data)
    return path


@pytest.mark.parametrize("name", list(handwritten(Path("x"))))
def test_no_pickle_runs_code(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    data, asks_for = handwritten(canary)[name]
    plain = tmp_path / "plain.pkl"
    plain.write_bytes(data)
    for path in (zip_of(tmp_path / "zip.pt", data), legacy_of(tmp_path / "legacy.pt", data), plain):
        message = refused(UnsafeFile, path)
        assert f"asks for '{asks_for}'" in message and "none of it was run" in message
    assert not canary.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_code_hidden_among_weights_does_not_run(tmp_path: Path, legacy: bool) -> None:
    canary = tmp_path / "canary"
    path = torch_file(tmp_path / "a.pt", {"a": torch.ones(1), "b": Malicious(canary)}, legacy)
    assert "mkdir" in refused(UnsafeFile, path)
    assert not canary.exists()
    torch.load(path, weights_only=False)  # the file is indeed harmful
    assert canary.is_dir()


TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
# four floats
STORAGE = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
VIEW = b"\x80\x02" + TENSOR + STORAGE
TAMPERED = {
    "state set on a function": b"\x80\x02" + TENSOR + b"}X\x01\x00\x00\x00aK\x01sb.",
    "slots set on a function": b"\x80\x02" + TENSOR + b"N}X\x0c\x00\x00\x00__defaults__)s\x86b.",
    "state set on a tensor": VIEW + b"K\x00K\x02\x85K\x01\x85tR}X\x06\x00\x00\x00offsetK\x63sb.",
    "reaches outside": VIEW + b"K\x03K\x02\x85K\x01\x85tR.",
    "negative offset": VIEW + b"J\xff\xff\xff\xffK\x02\x85K\x01\x85tR.",
    "huge by stride 0": VIEW + b"K\x00J\x00\x00\x00\x40\x85K\x00\x85tR.",
    "size beyond torch": VIEW + b"K\x00\x8a\x09" + bytes(8) + b"\x01K\x00\x86K\x01K\x01\x86tR.",
    "count beyond torch": VIEW + b"K\x00" + 2 * (b"\x8a\x06" + bytes(5) + b"\x01") + b"K\x00\x87K\x01K\x01K\x01\x87tR.",
    "step beyond torch": VIEW + b"K\x00K\x01\x85\x8a\x09" + bytes(8) + b"\x01\x85tR.",
    "not a storage": b"\x80\x02" + TENSOR + b"(K\x01K\x00K\x02\x85K\x01\x85tR.",
    "unbound memo": b"\x80\x02h\x07.",
    "no end": b"\x80\x02}",
    "garbage": b"\x80\x02\xff\xfe\xfd",
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_pickle_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = zip_of(tmp_path / "a.pt", TAMPERED[name], {"0": bytes(16)})
    assert refused(FileProblem, path) == "a.pt: ends early or is damaged: download it again"
    sound = zip_of(tmp_path / "b.pt", VIEW + b"K\x02K\x02\x85K\x01\x85tR.", {"0": bytes(16)})
    assert store.load(sound).tensors["0"].shape == (2,)


def test_data_other_than_weights_is_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.pt", pickle.dumps({"a": b"raw"}, protocol=4))
    assert refused(UnsafeFile, path) == "a.pt: holds 'bytes' at 'a' where weights belong; it was not loaded"
    endless: list[object] = []
    endless.append(endless)
    assert "'list'" in refused(UnsafeFile, torch_file(tmp_path / "b.pt", endless))


def test_lists_that_hold_each_other_many_times_over_are_refused_soon(tmp_path: Path) -> None:
    value: object = []
    for _ in range(7):
        value = [value] * 12  # a few hundred bytes in the file
    message = refused(FileProblem, zip_of(tmp_path / "a.pt", pickle.dumps(value, protocol=2)))
    assert message == "a.pt: lists more entries than any model has; it was not loaded"


def test_a_tensor_of_no_values_is_read_whatever_its_strides(tmp_path: Path) -> None:
    sound = zip_of(tmp_path / "a.pt", VIEW + b"K\x63K\x00K\x02\x86J\xff\xff\xff\x7fK\x09\x86tR.", {"0": bytes(16)})
    assert store.load(sound).tensors["0"].shape == (0, 2)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_truncated_torch_file_is_refused_wherever_it_ends(tmp_path: Path, legacy: bool) -> None:
    whole = torch_file(tmp_path / "whole.pt", {"a": torch.ones(50), "b": torch.ones(3)}, legacy).read_bytes()
    path = tmp_path / "cut.pt"
    for end in sorted({0, 1, 2, 30, len(whole) // 4, len(whole) // 2, len(whole) - 200, len(whole) - 1}):
        path.write_bytes(whole[:end])
        with pytest.raises(FileProblem, match="download it again"):
            store.load(path)


def test_archives_without_weights_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("style.safetensors", b"x")
    assert "is a zip archive and holds no weights itself; unpack it" in refused(FileProblem, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"a": 1}))
    assert "is a pickle that torch.save did not write" in refused(FileProblem, tmp_path / "b.pt")
    with zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    assert "is compressed or encrypted" in refused(FileProblem, tmp_path / "c.pt")


# --- hashes ---------------------------------------------------------------------------------------------------------


def test_hashes_are_those_of_the_file_that_is_written(tmp_path: Path) -> None:
    tensors = {**sample(FLOATS[:4]), "big": torch.arange(400_000.0)}
    metadata = store.with_hashes(tensors, {"ss_tag": "x" * 1000, "lorasmith.recipe": "{}", "sshs_model_hash": "old"})
    path = store.save(tmp_path / "a.safetensors", tensors, metadata)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert metadata["sshs_model_hash"] == hashlib.sha256(content[start:]).hexdigest()
    contiguous = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
    bare = safetensors.torch.save(contiguous, {"ss_tag": "x" * 1000})
    assert len(bare) > 0x110000
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(bare[0x100000:0x110000]).hexdigest()[:8]
    assert store.sha256(path) == hashlib.sha256(content).hexdigest()
    assert store.autov2(path) == store.sha256(path)[:10]
    assert store.autov3(path) == metadata["sshs_model_hash"][:12]
    assert store.load(path).metadata["sshs_model_hash"] == store.model_hash(store.load(path).tensors)


@pytest.mark.parametrize("size", [10, 0x40000 - 30, 0x40000 + 100, 0x44000, 0x44000 + 100])
def test_the_legacy_hash_looks_at_the_same_window_whatever_the_size(size: int) -> None:
    tensors = {"a": torch.arange(float(size)), "b": torch.arange(7).half()}
    bare = safetensors.torch.save(tensors, {})
    assert store.legacy_hash(tensors, {"format": "pt"}) == hashlib.sha256(bare[0x100000:0x110000]).hexdigest()[:8]


def test_autov3_of_a_pickle_is_its_sha256(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "a.pt", {"a": torch.ones(1)})
    assert store.autov3(path) == store.sha256(path)[:12]
