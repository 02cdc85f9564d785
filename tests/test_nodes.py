"""The nodes without ComfyUI: what they refuse and do, and how training is followed, over a host of a few lines."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from train_models import TinyBackend, pictures

from lorasmith import convert
from lorasmith.convert.architectures import ARCHITECTURES, architecture
from lorasmith.convert.model import Architecture, modules
from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.errors import BadConfig, FileProblem, LorasmithError, NotALoRA, WrongArchitecture
from lorasmith.lora_core.layers import IA3, DiagOFT, DoRA, Full, Layer, LoKr, LoRA, OFTv2, Replace
from lorasmith.lora_core.train.engine import Event
from lorasmith.nodes import actions
from lorasmith.nodes.catalog import nodes
from lorasmith.nodes.fit import Spot, Weights, fit, refuse_misfit
from lorasmith.nodes.paths import below, free_folder, free_name, last_folder, picture_folders
from lorasmith.nodes.spec import Choice, Node, Socket
from lorasmith.nodes.training import follow, train_lora

ROOT = Path(__file__).resolve().parents[1]
QUERY = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"


class Cancelled(BaseException):
    """Stands for the host's own interrupt."""


class Bar:
    """A progress bar that is cancelled once it has come to a step."""

    def __init__(self, cancel_at: int | None = None):
        self.seen: list[int] = []
        self.cancel_at = cancel_at
        self.stopped: BaseException | None = None

    def show(self, done: int) -> None:
        self.seen.append(done)
        if done == self.cancel_at:
            self.stopped = Cancelled()

    def cancelled(self) -> BaseException | None:
        return self.stopped

    def is_cancel(self, error: BaseException) -> bool:
        if isinstance(error, Cancelled):
            self.stopped = error
        return error is self.stopped


class FakeHost:
    """Folders of a test, and a loaded model of a family's names and shapes."""

    def __init__(self, folder: Path, family: str = "sd15", bar: Bar | None = None):
        self.folder, self.family, self.bar = folder, family, bar or Bar()
        self.said: list[str] = []
        self.patches: list[tuple[dict[Spot, Layer], float, float]] = []
        self.biased: set[str] = set()  # modules that have a bias
        for name in ("loras", "input", "output"):
            (folder / name).mkdir(exist_ok=True)

    def lora_names(self) -> list[str]:
        return [path.name for path in (self.folder / "loras").iterdir()]

    def lora_path(self, name: str) -> Path | None:
        path = self.folder / "loras" / name
        return path if path.is_file() else None

    def output_folder(self) -> Path:
        return self.folder / "output"

    def input_folder(self) -> Path:
        return self.folder / "input"

    def weights(self, model: Any, clip: Any) -> Weights:
        shapes: dict[str, tuple[int, ...]] = {}
        for part in architecture(self.family).components:
            prefix = part.prefixes["comfy"][0].removeprefix("text_encoders.")
            wired = model if prefix.startswith("diffusion_model") else clip
            for module in modules(part) if wired is not None else ():
                shapes[f"{prefix}.{module.original}.weight"] = module.shape
                if module.original in self.biased:
                    shapes[f"{prefix}.{module.original}.bias"] = module.shape[:1]
        return Weights(shapes, model is not None, clip is not None)

    def patched(
        self, model: Any, clip: Any, layers: Any, strength_model: float, strength_clip: float
    ) -> tuple[Any, Any]:
        self.patches.append((dict(layers), strength_model, strength_clip))
        return model, clip

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, total: int) -> Bar:
        return self.bar

    def backend(self, *_models: Any) -> Backend:
        return Backend()


class Backend(TinyBackend):
    """The few layers of the trainer's tests, in the places of real ones, seen from inference mode."""

    NAMES = ("input_blocks.0.0", QUERY, "out.2")
    threads: list[tuple[str, bool]] = []

    def modules(self) -> Any:
        return {
            Target("denoiser", name): self.net[part]
            for name, part in zip(self.NAMES, ("conv", "mix", "out"), strict=True)
        }

    def __call__(self, *given: Any) -> Any:
        self.threads.append((threading.current_thread().name, torch.is_inference_mode_enabled()))
        return super().__call__(*given)

    def weights(self, module: Any, like: Any) -> Any:
        return module.weight, module.bias


def adapter(
    *targets: tuple[str, str], seed: int = 0, shape: tuple[int, int] = (320, 320), family: str = "sd15"
) -> Adapter:
    """Return a rank-2 LoRA of linear layers."""
    generator = torch.Generator().manual_seed(seed)
    out, inner = shape
    layers = {
        Target(*target): LoRA(
            torch.randn(2, inner, generator=generator), torch.randn(out, 2, generator=generator), alpha=1.0
        )
        for target in targets
    }
    return Adapter(family, layers)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


@pytest.fixture
def lora() -> Adapter:
    return adapter(("denoiser", QUERY))


# --- the catalog


@pytest.fixture
def catalog(host: FakeHost) -> tuple[Node, ...]:
    return nodes(host)


def test_each_node_says_what_it_is_and_has_a_page(catalog: tuple[Node, ...]) -> None:
    assert len({node.id for node in catalog}) == len(catalog)
    for node in catalog:
        assert node.id.startswith("Lorasmith") and node.description.endswith(".")
        assert all(one.tooltip for one in (*node.inputs, *node.outputs))
        page = (ROOT / "web/docs" / f"{node.id}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {node.title}\n")
        named = page + " `strength_b` `strength_c`" * ("`strength_a` to `strength_d`" in page)
        assert [one.id for one in node.inputs if not isinstance(one, Socket) and f"`{one.id}`" not in named] == []


def test_no_help_page_lacks_its_node(catalog: tuple[Node, ...]) -> None:
    assert {path.stem for path in (ROOT / "web/docs").iterdir()} == {node.id for node in catalog}


@pytest.mark.parametrize("path", sorted((ROOT / "example_workflows").glob("*.json")), ids=lambda path: path.stem)
def test_example_workflows_know_the_nodes_as_they_are(path: Path, catalog: tuple[Node, ...]) -> None:
    known = {node.id: node for node in catalog}
    used = [
        node for node in json.loads(path.read_text(encoding="utf-8"))["nodes"] if node["type"].startswith("Lorasmith")
    ]
    assert used and path.with_suffix(".jpg").is_file()
    for node in used:
        widgets = [one for one in known[node["type"]].inputs if not isinstance(one, Socket)]
        named = node.get("widgets_values_named", {})
        assert list(named) == [one.id for one in widgets]
        assert list(named.values()) == node.get("widgets_values", [])
        fixed = [one for one in widgets if isinstance(one, Choice) and not callable(one.options)]
        assert all(named[one.id] in one.options for one in fixed)


def test_lists_are_asked_for_anew(host: FakeHost, catalog: tuple[Node, ...]) -> None:
    (listed,) = (one for one in catalog[0].inputs if isinstance(one, Choice))
    before = listed.listed()
    (host.folder / "loras/new.safetensors").touch()
    assert (before, listed.listed()) == ([], ["new.safetensors"])


# --- names and folders


@pytest.mark.parametrize(
    "name",
    [
        *("", "..", "../a", "a/../../b", "/etc/a", "C:\\a", "\\\\host\\a", "a//b", "a\0b", "a:b", "a.", " a/ b"),
        *("CON", "styles/nul", "com1.safetensors", "Lpt9 .x/a", "aux"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadConfig, match="name below loras"):
        below(tmp_path / "loras", name)


def test_a_link_does_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras/out").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(BadConfig, match="through a link"):
        below(tmp_path / "loras", "out/style")


def test_good_names_lie_below(tmp_path: Path) -> None:
    assert below(tmp_path, "styles/my lora.v2") == tmp_path.resolve() / "styles/my lora.v2"
    assert below(tmp_path, "console/com10").name == "com10"
    assert below(tmp_path, "styles\\ink") == tmp_path.resolve() / "styles/ink"


def test_taken_names_get_a_number(tmp_path: Path) -> None:
    assert free_name(tmp_path / "a", ".safetensors").name == "a.safetensors"
    for name in ("a.safetensors", "a_00001.safetensors"):
        (tmp_path / name).touch()
    assert free_name(tmp_path / "a.safetensors", ".safetensors").name == "a_00002.safetensors"


@pytest.mark.parametrize("name", ["n" * 300, "n" * 250, "n" * 300 + "/a"])
def test_a_name_that_is_too_long_is_said_in_one_line(host: FakeHost, lora: Adapter, name: str) -> None:
    (host.output_folder() / "loras").mkdir()
    with pytest.raises(FileProblem, match="cannot be (written|made a folder) .*[Nn]ame too long") as refusal:
        actions.save_lora(host, lora, name, "kohya", "keep")
    assert "\n" not in refusal.value.message


def test_the_last_folder_is_the_one_given_out_last(tmp_path: Path) -> None:
    run = tmp_path / "a[1]"
    assert last_folder(run) == run
    for _ in range(3):
        free_folder(run).mkdir()
    (tmp_path / "a[1]_other").mkdir()
    assert last_folder(run).name == "a[1]_00002"


def test_folders_with_pictures_are_offered(tmp_path: Path) -> None:
    for name in ("cats/a.PNG", "cats/black/b.jpg", "text/c.txt", ".hidden/d.png", "e.png", "1/2/3/4/f.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert picture_folders(tmp_path, (".png", ".jpg")) == ["cats", "cats/black"]


# --- fitting


def test_a_lora_that_fits_is_patched_with_its_layers(host: FakeHost) -> None:
    both = adapter(("denoiser", QUERY))
    both = Adapter(
        "sd15", {**both.layers, **adapter(("clip_l", TEXT), shape=(768, 768)).layers}, extras={"emb": torch.ones(1)}
    )
    result = actions.apply_lora(host, both, 0.5, 0.25, model="MODEL", clip="CLIP")
    assert result.values == ("MODEL", "CLIP") and result.text == "2 of 2 modules match"
    ((layers, model, clip),) = host.patches
    assert (model, clip) == (0.5, 0.25)
    unet, text = (
        Spot(f"diffusion_model.{QUERY}.weight", (320, 320)),
        Spot(f"clip_l.transformer.{TEXT}.weight", (768, 768)),
    )
    assert layers == {unet: both.layers[Target("denoiser", QUERY)], text: both.layers[Target("clip_l", TEXT)]}


def test_only_what_is_wired_counts(host: FakeHost) -> None:
    both = Adapter(
        "sd15", {**adapter(("denoiser", QUERY)).layers, **adapter(("clip_l", TEXT), shape=(768, 768)).layers}
    )
    assert fit(both, host.weights("MODEL", None)).total == 1
    assert fit(both, host.weights(None, "CLIP")).total == 1
    with pytest.raises(BadConfig, match="not wired"):
        actions.apply_lora(host, adapter(("clip_l", TEXT), shape=(768, 768)), 1, 1, model="MODEL")


def test_another_family_is_refused_before_anything_is_patched(tmp_path: Path, lora: Adapter) -> None:
    host = FakeHost(tmp_path, family="sdxl")
    with pytest.raises(
        WrongArchitecture, match="was made for Stable Diffusion 1.x, the loaded model is Stable Diffusion XL"
    ):
        actions.apply_lora(host, lora, 1, 1, allow_partial=True, model="MODEL")
    assert host.patches == []


def test_layers_of_another_shape_are_refused_or_left_out(host: FakeHost, lora: Adapter) -> None:
    wide = adapter(("denoiser", QUERY.replace("to_q", "to_k")), shape=(320, 640))
    mixed = Adapter("sd15", {**lora.layers, **wide.layers})
    with pytest.raises(
        WrongArchitecture,
        match=r"1 of 2 layers have another shape, first .*to_k' with \[320, 640\] where .*\[320, 320\]",
    ):
        actions.apply_lora(host, mixed, 1, 1, model="MODEL")
    assert host.patches == []
    actions.apply_lora(host, mixed, 1, 1, allow_partial=True, model="MODEL")
    assert [spot.name for spot in host.patches[0][0]] == [f"diffusion_model.{QUERY}.weight"]


def test_a_kernel_that_is_stored_flat_fits(host: FakeHost) -> None:
    flat = adapter(("denoiser", "input_blocks.0.0"), shape=(320, 4 * 3 * 3))
    assert actions.apply_lora(host, flat, 1, 1, model="MODEL").text == "1 of 1 modules match"


def test_layers_without_a_place_are_counted(host: FakeHost, lora: Adapter) -> None:
    weights = host.weights("MODEL", None)
    less = {name: shape for name, shape in weights.shapes.items() if "to_q" not in name}
    with pytest.raises(WrongArchitecture, match="fits none of the loaded model's modules: 1 of 1 layers have no place"):
        refuse_misfit(lora, fit(lora, Weights(less, True, False)), allow_partial=True)


# --- families and algorithms


def rows(out: int, inner: int, *kernel: int) -> Full:
    """Return a layer of a shape, which takes no memory."""
    return Full(torch.zeros(()).expand(out, inner, *kernel))


def everything(family: Architecture) -> Adapter:
    """Return an adapter with a layer on every weight of a family, in row blocks where it is fused."""
    layers: dict[Target, Layer] = {}
    for part in family.components:
        for module in modules(part):
            whole = Target(part.id, module.original)
            parts = {replace(whole, block=n): height for n, height in enumerate(module.blocks)}
            for target, height in (parts or {whole: module.shape[0]}).items():
                layers[target] = Full(torch.zeros(()).expand(height, *module.shape[1:]))
    return Adapter(family.id, layers)


IN_COMFYUI = [family for family in ARCHITECTURES if all("comfy" in part.prefixes for part in family.components)]


@pytest.mark.parametrize("family", IN_COMFYUI, ids=lambda family: family.id)
def test_every_layer_of_a_family_finds_its_rows_in_the_live_model(tmp_path: Path, family: Architecture) -> None:
    weights, lora = FakeHost(tmp_path, family.id).weights("MODEL", "CLIP"), everything(family)
    found = fit(lora, weights)
    assert found.whole and found.matched == len(lora.layers)
    for spot in found.layers:
        whole = weights.shapes[spot.name]
        assert spot.shape[1:] == whole[1:] and (spot.start or 0) + spot.shape[0] <= whole[0]


def test_row_blocks_lie_one_below_another(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, "flux")
    layers = {Target("denoiser", "single_blocks.0.linear1", block): rows(3072, 3072) for block in range(3)}
    layers[Target("denoiser", "single_blocks.0.linear1", 3)] = rows(12288, 3072)
    actions.apply_lora(host, Adapter("flux", layers), 1, 1, model="MODEL")
    spots = [(spot.start, spot.shape) for spot in host.patches[0][0]]
    assert spots == [(0, (3072, 3072)), (3072, (3072, 3072)), (6144, (3072, 3072)), (9216, (12288, 3072))]


def test_row_blocks_go_with_the_models_size(tmp_path: Path) -> None:
    shapes = {"diffusion_model.single_blocks.0.linear1.weight": (896, 128), "diffusion_model.img_in.weight": (128, 64)}
    layers = {Target("denoiser", "single_blocks.0.linear1", 3): rows(512, 128)}
    (spot,) = fit(Adapter("flux", layers), Weights(shapes, True, False)).layers
    assert (spot.start, spot.shape) == (384, (512, 128))
    odd = {name: (shape[0] + 1, shape[1]) for name, shape in shapes.items()}
    assert fit(Adapter("flux", layers), Weights(odd, True, False)).unmatched


@pytest.mark.parametrize(
    ("made", "loaded", "module", "shape"),
    [
        ("flux", "flux2-dev", "double_blocks.0.img_attn.proj", (3072, 3072)),
        ("flux", "hunyuan-video", "double_blocks.0.img_attn.proj", (3072, 3072)),
        ("sd15", "sd21", "input_blocks.1.1.transformer_blocks.0.attn1.to_q", (320, 320)),
    ],
)
def test_families_that_share_names_are_told_apart(
    tmp_path: Path, made: str, loaded: str, module: str, shape: tuple[int, int]
) -> None:
    host = FakeHost(tmp_path, loaded)
    names = [architecture(id).name for id in (made, loaded)]
    words = f"was made for {re.escape(names[0])}, the loaded model is {re.escape(names[1])}"
    with pytest.raises(WrongArchitecture, match=words) as caught:
        actions.apply_lora(host, adapter(("denoiser", module), shape=shape, family=made), 1, 1, model="MODEL")
    assert "\n" not in caught.value.message and host.patches == []


def test_what_fits_another_family_takes_the_persons_word(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, "hunyuan-video")
    lora = adapter(("denoiser", "double_blocks.0.img_attn.proj"), shape=(3072, 3072), family="flux")
    with pytest.raises(WrongArchitecture, match="or turn on allow_partial"):
        actions.apply_lora(host, lora, 1, 1, model="MODEL")
    text = actions.apply_lora(host, lora, 1, 1, allow_partial=True, model="MODEL").text
    assert text == "1 of 1 modules match; made for FLUX.1, the loaded model is HunyuanVideo"


def test_variants_of_a_model_share_what_fits(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, "chroma")
    lora = adapter(("denoiser", "double_blocks.0.img_attn.proj"), shape=(3072, 3072), family="flux")
    assert actions.apply_lora(host, lora, 1, 1, model="MODEL").text.startswith("1 of 1 modules match; made for FLUX.1")
    more = adapter(("denoiser", "double_blocks.0.img_mod.lin"), shape=(18432, 3072), family="flux")
    both = Adapter("flux", {**lora.layers, **more.layers})
    with pytest.raises(WrongArchitecture, match=r"img_mod.lin' \(it was made for FLUX.1, .*allow_partial"):
        actions.apply_lora(host, both, 1, 1, model="MODEL")
    actions.apply_lora(host, both, 1, 1, allow_partial=True, model="MODEL")
    assert len(host.patches[-1][0]) == 1


def test_text_encoders_are_shared_by_families(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, "sdxl")
    lora = adapter(("clip_l", TEXT), shape=(768, 768))
    assert actions.apply_lora(host, lora, 1, 1, model="MODEL", clip="CLIP").text == "1 of 1 modules match"


def test_a_model_without_a_table_takes_what_fits(host: FakeHost, lora: Adapter) -> None:
    strange = {f"diffusion_model.stranger.{n}.weight": (8, 8) for n in range(50)}
    name = f"diffusion_model.{QUERY}.weight"
    found = fit(lora, Weights({**strange, name: (320, 320)}, True, False))
    assert found.family is None and [spot.name for spot in found.layers] == [name]
    with pytest.raises(WrongArchitecture, match="fits none of the loaded model's modules"):
        refuse_misfit(lora, fit(lora, Weights(strange, True, False)), allow_partial=True)


def test_a_trained_output_factor_reaches_the_bias(host: FakeHost) -> None:
    out = QUERY.replace("to_q", "to_out.0")
    host.biased.add(out)
    factor = torch.rand(320, 1)
    for layer, names in (
        (IA3(factor, False, absolute=True), ["weight", "bias"]),
        (IA3(factor, False), ["weight"]),
        (IA3(factor.T, True, absolute=True), ["weight"]),
    ):
        actions.apply_lora(host, Adapter("sd15", {Target("denoiser", out): layer}), 1, 1, model="MODEL")
        assert [spot.name for spot in host.patches[-1][0]] == [f"diffusion_model.{out}.{name}" for name in names]
    plain = Adapter("sd15", {Target("denoiser", QUERY): IA3(factor, False, absolute=True)})
    actions.apply_lora(host, plain, 1, 1, model="MODEL")
    assert len(host.patches[-1][0]) == 1  # no bias there


@pytest.mark.parametrize(("family", "width"), [("wan21-14b-t2v", 5120), ("wan21-1.3b-t2v", 1536)])
def test_parameters_that_are_no_weight_are_found(tmp_path: Path, family: str, width: int) -> None:
    shapes = FakeHost(tmp_path, family).weights("MODEL", None).shapes
    live = {name.replace(".modulation.weight", ".modulation"): shape for name, shape in shapes.items()}
    layers: dict[Target, Layer] = {Target("denoiser", "blocks.3.modulation"): Full(torch.zeros(1, 6, width))}
    found = fit(Adapter(family, layers), Weights(live, True, False))
    (spot,) = found.layers
    assert spot == Spot("diffusion_model.blocks.3.modulation", (1, 6, width)) and not found.elsewhere


IN = "input_blocks.0.0"  # a convolution, 4 to 320 channels


@pytest.mark.parametrize(
    ("layer", "fits"),
    [
        (LoRA(torch.zeros(2, 4, 3, 3), torch.zeros(320, 2, 1, 1), 1.0), True),
        (LoRA(torch.zeros(2, 4), torch.zeros(320, 2), 1.0), False),
        (LoRA(torch.zeros(2, 8, 3, 3), torch.zeros(320, 2, 1, 1), 1.0), False),
        (LoRA(torch.zeros(2, 8, 3, 3), torch.zeros(320, 2, 1, 1), 1.0, reshape=torch.tensor([320, 8, 3, 3])), True),
        (LoRA(torch.zeros(2, 2, 3, 3), torch.zeros(320, 2, 1, 1), 1.0, reshape=torch.tensor([320, 2, 3, 3])), False),
        (IA3(torch.zeros(4), True), True),
        (IA3(torch.zeros(36), True), False),
        (IA3(torch.zeros(320, 1, 1, 1), False), True),
        (DiagOFT(torch.zeros(20, 16, 16)), True),
        (DiagOFT(torch.zeros(20, 8, 8)), False),
        (OFTv2(torch.zeros(1, 6)), True),  # blocks of 4, one for all 36 inputs
        (OFTv2(torch.zeros(1, 10)), False),  # of 5
        (OFTv2(torch.zeros(9, 6)), True),
        (Replace(torch.zeros(320, 4, 3, 3)), True),
        (LoKr(1.0, w1=torch.zeros(4, 2), w2=torch.zeros(80, 2, 3, 3)), True),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, bool) else str(value),
)
def test_a_layer_fits_by_what_it_knows_of_the_weight(host: FakeHost, layer: Layer, fits: bool) -> None:
    found = fit(Adapter("sd15", {Target("denoiser", IN): layer}), host.weights("MODEL", None))
    assert found.whole is fits


def test_the_verdict_names_the_algorithms(host: FakeHost) -> None:
    lora = LoRA(torch.ones(2, 320), torch.ones(320, 2), 1.0)
    layers: dict[Target, Layer] = {
        Target("denoiser", QUERY): lora,
        Target("denoiser", QUERY.replace("to_q", "to_k")): DoRA(lora, torch.ones(320, 1)),
        Target("denoiser", QUERY.replace("to_q", "to_v")): LoKr(1.0, w1=torch.ones(8, 8), w2=torch.ones(40, 40)),
    }
    lines = actions.inspect_lora(host, Adapter("sd15", layers)).text.splitlines()
    assert "kinds: DoRA over LoRA 1, LoKr 1, LoRA 1" in lines
    assert lines[0] == "Stable Diffusion 1.x, 3 layers, DoRA over LoRA, LoKr, rank 2"


# --- what the nodes do


def test_load_scale_merge_save_and_read_again(host: FakeHost, lora: Adapter) -> None:
    convert.write(lora, host.folder / "loras/a.safetensors", "kohya")
    convert.write(adapter(("denoiser", QUERY), seed=1), host.folder / "loras/b.safetensors", "diffusers")
    a, b = (actions.load_lora(host, f"{name}.safetensors").values[0] for name in "ab")
    (half,) = actions.scale_lora(a, 0.5, 1.0).values
    merged, report = actions.merge_loras(half, 2.0, b, -1.0, 1.0, 1.0, "exact", 32).values
    assert report.startswith("merged 2 LoRAs") and "relative error" in report
    target = Target("denoiser", QUERY)
    expected = a.layers[target].delta() - b.layers[target].delta()
    torch.testing.assert_close(merged.layers[target].delta(), expected)
    path, report = actions.save_lora(host, merged, "new/sum", "comfy", "keep").values
    assert Path(path) == (host.output_folder() / "loras/new/sum.safetensors").resolve()
    assert report.startswith(
        "new/sum.safetensors: Stable Diffusion 1.x, 1 layers, rank 4, comfy keys, relative error 0.0 (exact)"
    )
    torch.testing.assert_close(convert.read(path).layers[target].delta(), expected)


def test_a_narrower_number_format_reports_its_error(host: FakeHost, lora: Adapter) -> None:
    report = actions.save_lora(host, lora, "half", "kohya", "fp16").values[1]
    error = float(report.rpartition(" ")[2])
    assert 1e-5 < error < 1e-3


def test_svd_keeps_the_rank_that_is_asked_for(lora: Adapter) -> None:
    merged, report = actions.merge_loras(
        lora, 1.0, adapter(("denoiser", QUERY), seed=1), 1.0, 1.0, 1.0, "svd", 3
    ).values
    assert "rank 3" in report and merged.layers[Target("denoiser", QUERY)].rank == 3


def test_a_file_that_changes_is_read_again(host: FakeHost, lora: Adapter) -> None:
    path = host.folder / "loras/a.safetensors"
    convert.write(lora, path)
    first = actions.lora_fingerprint(host, "a.safetensors")
    assert actions.lora_fingerprint(host, "a.safetensors") == first
    convert.write(adapter(("denoiser", QUERY), seed=1), path, overwrite=True)
    assert actions.lora_fingerprint(host, "a.safetensors") != first
    assert actions.lora_fingerprint(host) == [None]  # a wired name is not known yet


def test_files_at_fault_are_named(host: FakeHost) -> None:
    with pytest.raises(FileProblem, match="gone.safetensors: is not in the loras folders"):
        actions.load_lora(host, "gone.safetensors")


def test_lora_model_goes_both_ways(lora: Adapter) -> None:
    (state,) = actions.to_lora_model(lora).values
    (back,) = actions.from_lora_model(state).values
    target = Target("denoiser", QUERY)
    assert torch.equal(back.layers[target].delta(), lora.layers[target].delta())


def test_a_state_dict_that_is_no_lora_is_refused() -> None:
    with pytest.raises(NotALoRA):
        actions.from_lora_model({"diffusion_model.input_blocks.0.0.weight": torch.ones(2, 2)})


def test_the_verdict_says_what_matters(host: FakeHost, lora: Adapter) -> None:
    named = Adapter("sd15", lora.layers, {"modelspec.trigger_phrase": "sks", "ss_sd_model_name": "v1-5"})
    text, _ = actions.inspect_lora(host, named, "MODEL").values
    for line in (
        "Stable Diffusion 1.x, 1 layers, rank 2",
        "alpha: 1",
        "trigger words: sks",
        "trained on: v1-5",
        "healthy",
    ):
        assert line in text.splitlines()
    assert text.endswith("1 of 1 modules match")


# --- training


SILENT: list[str] = []


def steps(count: int, act: Callable[[int], None] = lambda _: None) -> Callable[[Callable[[], bool]], Iterator[Event]]:
    """Return a run of so many steps that stops when it is asked to."""

    def events(stop: Callable[[], bool]) -> Iterator[Event]:
        yield Event("start", 0, count)
        for index in range(1, count + 1):
            act(index)
            yield Event("step", index, count, loss=1.0)
            if stop():
                yield Event("stopped", index, count)
                return
        yield Event("done", count, count)

    return events


def test_a_run_is_followed_to_its_end() -> None:
    bar = Bar()
    last = follow(steps(5), bar, SILENT.append)
    assert last is not None and last.step == 5 and bar.seen == [1, 2, 3, 4, 5]


def test_the_run_has_a_thread_outside_inference_mode() -> None:
    seen: list[tuple[bool, int]] = []
    with torch.inference_mode():
        follow(
            steps(1, lambda _: seen.append((torch.is_inference_mode_enabled(), threading.get_ident()))),
            Bar(),
            SILENT.append,
        )
    assert seen[0][0] is False and seen[0][1] != threading.get_ident()


def test_cancel_ends_the_run_after_the_step_in_hand() -> None:
    shown = threading.Event()
    bar = Bar(cancel_at=2)
    original = bar.show
    bar.show = lambda done: (original(done), shown.set() if done == 2 else None)[0]  # type: ignore[method-assign]
    last = follow(steps(1000, lambda index: index == 3 and shown.wait(5)), bar, SILENT.append)
    assert last is not None and 2 <= last.step < 1000


def test_the_hosts_own_interrupt_counts_as_cancel() -> None:
    bar = Bar()

    def interrupt(index: int) -> None:
        if index == 2:
            raise Cancelled

    last = follow(steps(5, interrupt), bar, SILENT.append)
    assert last is not None and last.step == 1 and isinstance(bar.cancelled(), Cancelled)


def test_errors_of_the_run_are_raised_here() -> None:
    def fail(_: int) -> None:
        raise BadConfig("config: no")

    with pytest.raises(BadConfig, match="config: no"):
        follow(steps(5, fail), Bar(), SILENT.append)


SETTINGS = {"steps": 3, "rank": 2, "alpha": 2, "resolution": 16, "learning_rate": 0.01, "scheduler": "constant"}


def test_training_publishes_the_result_under_a_free_name(host: FakeHost) -> None:
    pictures(host.input_folder() / "cats", {"a": "a cat", "b": "a dog"})
    Backend.threads.clear()
    with torch.inference_mode():
        for name in ("cat.safetensors", "cat_00001.safetensors"):
            lora, path = train_lora(host, "MODEL", "CLIP", "VAE", "cats", "cat", **SETTINGS).values
            assert Path(path) == (host.output_folder() / "loras" / name).resolve()
    assert all(name.startswith("lorasmith-training") and not inference for name, inference in Backend.threads)
    stored = convert.read(path)
    assert stored.architecture == "sd15" and stored.metadata["ss_output_name"] == "cat_00001"
    target = Target("denoiser", QUERY)
    assert torch.equal(lora.layers[target].delta(), stored.layers[target].delta()) and lora.layers[target].up.any()


def test_a_cancelled_run_is_saved_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    deltas = []
    for folder, cancel in (("whole", None), ("parts", 1)):
        (tmp_path / folder).mkdir()
        host = FakeHost(tmp_path / folder, bar=Bar(cancel))
        pictures(host.input_folder() / "cats", {"a": "a cat", "b": "a dog"})
        many = {**SETTINGS, "steps": 40}
        if cancel:
            with pytest.raises(Cancelled):
                train_lora(host, "MODEL", "CLIP", "VAE", "cats", "cat", **many)
            assert (host.output_folder() / "loras/cat.safetensors").is_file()
            host.bar = Bar()
        lora = train_lora(host, "MODEL", "CLIP", "VAE", "cats", "cat", resume=bool(cancel), **many).values[0]
        deltas.append(lora.layers[Target("denoiser", QUERY)].delta())
    assert torch.equal(*deltas)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"pictures": "../elsewhere"}, "name below input"),
        ({"pictures": "none"}, "no such folder"),
        ({"name": "a/../b"}, "name below lorasmith"),
        ({"rank": 0}, "'rank' is 0"),
    ],
)
def test_settings_at_fault_are_one_line(host: FakeHost, changed: dict[str, Any], words: str) -> None:
    pictures(host.input_folder() / "cats", {"a": "a cat"})
    given: dict[str, Any] = {"pictures": "cats", "name": "cat", **SETTINGS, **changed}
    with pytest.raises(LorasmithError, match=words) as caught:
        train_lora(host, "MODEL", "CLIP", "VAE", **given)
    assert "\n" not in caught.value.message
