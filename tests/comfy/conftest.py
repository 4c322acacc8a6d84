"""A real ComfyUI to test in: found, started on a free port with its own base directory, ended afterwards.

The tests run in the project's environment; ComfyUI runs in its own Python, as on a user's machine. Where no
ComfyUI is found the tests are skipped, and the last line of the run says so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

sys.path.append(str(Path(__file__).parent))
from gallery import SHOW_NODE
from graphs import APP, POCKET, open_page
from server import ROOT, ComfyUI, Server, environment, find_comfyui, running

if TYPE_CHECKING:
    from collectionlora.collection.catalogue import Catalogue

HERE = Path(__file__).resolve().parent

_outcomes: Counter[str] = Counter()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run these tests after all others, whose failures show sooner."""
    items.sort(key=lambda item: HERE in item.path.parents)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count the outcomes of the tests of this folder."""
    of_this_folder = report.nodeid.startswith("tests/comfy/")
    if of_this_folder and (report.when == "call" or report.outcome != "passed"):
        _outcomes[report.outcome] += 1


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Close the run with one line that tells what became of the tests in ComfyUI."""
    if _outcomes["skipped"] and not (_outcomes["passed"] or _outcomes["failed"]):
        print("comfy: SKIPPED (set COMFYUI_PATH)")
    elif _outcomes:
        counts = [f"{_outcomes[how]} {how}" for how in ("passed", "failed", "skipped") if _outcomes[how]]
        print(f"comfy: {', '.join(counts)}")


@pytest.fixture(scope="session")
def comfyui() -> ComfyUI:
    """The ComfyUI to test in; skips the test where there is none."""
    found = find_comfyui()
    if found is None:
        pytest.skip("no ComfyUI found: set COMFYUI_PATH")
    return found


@pytest.fixture(scope="session")
def run_inside(comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Run a script of ``tests/comfy/inside`` in ComfyUI's Python; returns the JSON of its last line.

    The script may import ``comfy`` and ``collectionlora``. Its whole output is shown when it fails.
    """
    packages = tmp_path_factory.mktemp("packages")
    (packages / "collectionlora").symlink_to(ROOT, target_is_directory=True)

    def run(script: str, *arguments: str | Path) -> dict[str, Any]:
        done = subprocess.run(
            [comfyui.python, HERE / "inside" / script, *map(str, arguments)],
            cwd=comfyui.path,
            env=environment(PYTHONPATH=os.pathsep.join([str(comfyui.path), str(packages)])),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    return run


@pytest.fixture(scope="session")
def linears() -> dict[str, tuple[int, int]]:
    """Module path -> (out, in) of every Linear of a two-layer pocket transformer, as diffusers names them."""
    import torch
    from diffusers import QwenImageTransformer2DModel

    with torch.device("meta"):
        model = QwenImageTransformer2DModel(
            in_channels=64,
            out_channels=16,
            num_layers=2,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=64,
            axes_dims_rope=(8, 12, 12),
        )
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


@pytest.fixture(scope="session")
def catalogue(linears: dict[str, tuple[int, int]]) -> Catalogue:
    """A catalogue of three effects for a pocket base."""
    from collectionlora.collection.catalogue import Catalogue, Effect, fingerprint

    names = ("prism", "snow", "woodcut")
    return Catalogue(
        effects=tuple(
            Effect(name, name.title(), f"<{name}_x>", f"<{name}_x> a cat – {name}") for name in names
        ),
        sigmas=(1.0, 0.75, 0.5, 0.25, 0.0),
        base=fingerprint(linears),
    )


@pytest.fixture(scope="session")
def collection_file(
    linears: dict[str, tuple[int, int]], catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A collection over all those modules: ranks 2 and 4 in turn, alpha other than the rank."""
    import torch

    from collectionlora.collection.file import save_collection
    from collectionlora.collection.lora_weights import LoraWeights

    generator = torch.Generator().manual_seed(1)
    weights = LoraWeights()
    for index, (name, (wide, narrow)) in enumerate(linears.items()):
        rank = 2 + 2 * (index % 2)
        weights.down[name] = torch.randn(rank, narrow, generator=generator) * 0.1
        weights.up[name] = torch.randn(wide, rank, generator=generator) * 0.1
        weights.alpha[name] = 3.0
    path = tmp_path_factory.mktemp("collection") / "pocket.safetensors"
    save_collection(path, weights, catalogue)
    return path


@pytest.fixture(scope="session")
def server(comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the whole run, with empty models, inputs and outputs."""
    with running(comfyui, tmp_path_factory.mktemp("comfyui")) as server:
        yield server


@pytest.fixture
def start_server(
    comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Server]]:
    """Start another server, by default with a base directory of its own; all end with the test."""
    with ExitStack() as stack:
        yield lambda base=None: stack.enter_context(
            running(comfyui, base or tmp_path_factory.mktemp("other"))
        )


@pytest.fixture(scope="session")
def lessons(server: Server) -> tuple[str, str]:
    """Lists in the input folder: two of the pocket's teachers, and two pictures for each."""
    pocket = ROOT / "pocket"
    names = ("thermal", "sketch")
    lists: dict[str, list[dict[str, str]]] = {}
    for name, file in (("effects", "two.jsonl"), ("data", "few.jsonl")):
        rows = [json.loads(line) for line in (pocket / f"{name}.jsonl").read_text().splitlines()]
        kept = [row for one in names for row in [row for row in rows if row["lora_name"] == one][:2]]
        for row in kept:
            for key in row.keys() & {"lora_path", "source_image"}:
                row[key] = str(pocket / row[key])
        lists[file] = kept
    for file, kept in lists.items():
        text = "".join(json.dumps(row) + "\n" for row in kept)
        (server.base_directory / "input" / file).write_text(text)
    return "two.jsonl", "few.jsonl"


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]


_errors: list[str] = []


def _note_error(message: Any) -> None:
    """Core logs errors of its own at its start; those that our scripts log are ours."""
    place = message.location.get("url", "")
    if message.type == "error" and "/extensions/" in place and place.endswith(".js"):
        _errors.append(message.text)


@pytest.fixture(autouse=True)
def no_script_fails(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in which a script of the page threw, or one of ours logged an error."""
    _errors.clear()
    yield
    assert "page" not in request.fixturenames or not _errors


@pytest.fixture(scope="session")
def page(server: Server) -> Iterator[Any]:
    """ComfyUI's page in a browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium found on the PATH")
    pictures = sorted((ROOT / "pocket" / "pictures" / "test").glob("*.webp"))
    shutil.copy(pictures[0], server.base_directory / "input" / "example.png")
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(20_000)  # a busy machine is no failure
        page.on("pageerror", lambda error: _errors.append(str(error.stack or error)))
        page.on("console", _note_error)
        page.on("filechooser", lambda _: None)  # held back from the start: a real dialog could open before
        open_page(page, server.url)
        yield page
        browser.close()


@pytest.fixture(params=["canvas", "vue"])
def picker(page: Any, request: Any) -> Any:
    """The page with the workflow that applies an effect, in one of the two node modes."""
    vue = request.param == "vue"
    page.evaluate(f"(on) => {APP}.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", vue)
    content = json.loads((POCKET.parent / "workflows" / "apply_effect_pocket.json").read_text("utf-8"))
    content["id"] = str(uuid4())  # the page remembers how galleries of a workflow are looked at
    page.evaluate(f"(graph) => {APP}.loadGraphData(graph)", content)
    page.evaluate(SHOW_NODE)
    page.locator(".cl-cell").first.wait_for()
    page.wait_for_timeout(300)
    return page


@pytest.fixture
def reopen(page: Any, server: Any) -> Callable[[], None]:
    """Load the page anew and open in it what was open."""

    def run() -> None:
        graph = page.evaluate(f"() => {APP}.graph.serialize()")
        open_page(page, server.url)
        page.evaluate(f"(graph) => {APP}.loadGraphData(graph)", graph)
        page.locator(".cl-cell").first.wait_for()
        page.wait_for_timeout(300)

    return run
