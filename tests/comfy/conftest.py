"""A real ComfyUI to test in: found, started on a free port with its own base directory, ended afterwards.

The tests run in the project's environment; ComfyUI runs in its own Python, as on a user's machine. Where no
ComfyUI is found the tests are skipped, and the last line of the run says so.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.append(str(Path(__file__).parent))
from graphs import open_page

if TYPE_CHECKING:
    from collectionlora.collection.catalogue import Catalogue

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
READY_WITHIN = 600.0  # seconds; 20 are usual, a loaded machine needs more

_outcomes: Counter[str] = Counter()
# Loopback only: a proxy set in the environment must not see these requests.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


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
    if _outcomes["failed"]:
        print(f"comfy: {_outcomes['passed']} passed, {_outcomes['failed']} failed")
    elif _outcomes["passed"]:
        print(f"comfy: {_outcomes['passed']} passed")
    elif _outcomes["skipped"]:
        print("comfy: SKIPPED (set COMFYUI_PATH)")


@dataclass(frozen=True)
class ComfyUI:
    """A ComfyUI on this machine and the Python it runs in."""

    path: Path
    python: Path


def find_comfyui() -> ComfyUI | None:
    """Look at COMFYUI_PATH, then ~/comfy/ComfyUI, then the ComfyUI this folder is a custom node of.

    A COMFYUI_PATH that holds no ComfyUI is an error, not a reason to look elsewhere.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        places = [Path(named).expanduser()]
    else:
        places = [Path.home() / "comfy" / "ComfyUI"]
        if ROOT.parent.name == "custom_nodes":
            places.append(ROOT.parent.parent)
    path = next((place for place in places if (place / "comfy" / "supported_models.py").is_file()), None)
    if path is None:
        if named:
            raise FileNotFoundError(f"COMFYUI_PATH={named} holds no ComfyUI (comfy/supported_models.py)")
        return None
    own = [path / ".venv" / "bin" / "python", path / ".venv" / "Scripts" / "python.exe"]
    set_by_user = os.environ.get("COMFYUI_PYTHON")
    python = next((str(file) for file in own if file.is_file()), set_by_user or sys.executable)
    return ComfyUI(path=path.resolve(), python=Path(python))


@pytest.fixture(scope="session")
def comfyui() -> ComfyUI:
    """The ComfyUI to test in; skips the test where there is none."""
    found = find_comfyui()
    if found is None:
        pytest.skip("no ComfyUI found: set COMFYUI_PATH")
    return found


def _environment(**changes: str) -> dict[str, str]:
    """Return the environment of a ComfyUI process: this one without what belongs to the project's Python."""
    left_out = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    # The repository may be reached through a link: ComfyUI's Python leaves no byte code in it.
    return kept | {"PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"} | changes


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
            env=_environment(PYTHONPATH=os.pathsep.join([str(comfyui.path), str(packages)])),
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


@dataclass(frozen=True)
class Server:
    """A running ComfyUI server with this repository among its custom nodes."""

    url: str
    base_directory: Path
    pack: Path
    log_file: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        """All the server has printed so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> Any:
        """GET a path, e.g. ``/object_info``, and parse the JSON it answers with."""
        with self.open(path) as answer:
            return json.load(answer)

    def open(self, path: str) -> Any:
        """The answer to a GET, to be closed."""
        return _open(self.url + path, timeout=60)

    def answer(self, path: str) -> Any:
        """GET a path and parse the JSON of its answer, of an error too."""
        try:
            return self.get(path)
        except urllib.error.HTTPError as error:
            return json.load(error)

    def post(self, path: str, content: Any) -> Any:
        """POST JSON and parse the JSON of the answer, of an error too."""
        data = json.dumps(content).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with _open(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            text = error.read()
        return json.loads(text) if text else None

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queue a graph in API format; returns its prompt id. Fails the test if it is refused."""
        answer = self.post("/prompt", {"prompt": prompt})
        assert "prompt_id" in answer, json.dumps(answer, indent=1)
        prompt_id: str = answer["prompt_id"]
        return prompt_id

    def wait(self, prompt_id: str, seconds: float = 300.0) -> dict[str, Any]:
        """The history entry of a prompt that has ended, well or not."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                entry: dict[str, Any] = history[prompt_id]
                return entry
            time.sleep(0.1)
        pytest.fail(f"prompt {prompt_id} has not ended:\n{self.log[-6000:]}", pytrace=False)

    def run(self, prompt: dict[str, Any], seconds: float = 300.0) -> dict[str, Any]:
        """Outputs by node id of a graph in API format. Fails the test if the graph fails."""
        entry = self.wait(self.queue(prompt), seconds)
        assert entry["status"]["status_str"] == "success", json.dumps(entry["status"], indent=1)
        outputs: dict[str, Any] = entry["outputs"]
        return outputs

    def error_of(self, prompt: dict[str, Any]) -> str:
        """The message with which a graph in API format fails. Fails the test if it does not."""
        entry = self.wait(self.queue(prompt))
        for kind, content in entry["status"]["messages"]:
            if kind == "execution_error":
                return str(content["exception_message"])
        pytest.fail(f"the graph did not fail: {entry['status']}")

    def output_file(self, saved: dict[str, str]) -> Path:
        """The file of an entry such as {"filename", "subfolder", "type"}."""
        return self.base_directory / saved["type"] / saved["subfolder"] / saved["filename"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while process.poll() is None and time.monotonic() < deadline:
        try:
            server.get("/system_stats")
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.25)
        else:
            return
    state = "still starts" if process.poll() is None else f"ended with exit code {process.returncode}"
    pytest.fail(f"ComfyUI {state}:\n{server.log[-6000:]}", pytrace=False)


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            # its own session, so the group holds the server and whatever it started
            os.killpg(process.pid, number)
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                continue


@contextmanager
def _running(comfyui: ComfyUI, base: Path) -> Iterator[Server]:
    """A server on a free loopback port, with this base directory."""
    for folder in ("custom_nodes", "input", "output", "temp", "user", "models/loras"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    # No name a Python package could have: users unpack archives and rename folders. (A space in it ComfyUI
    # does not forgive: it serves no script from such a folder.)
    pack = base / "custom_nodes" / "Collection-LoRA-main"
    if not pack.is_symlink():
        pack.symlink_to(ROOT, target_is_directory=True)
    port = _free_port()
    command = [str(comfyui.python), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
    command += ["--base-directory", str(base), "--database-url", "sqlite:///:memory:"]
    command += ["--disable-api-nodes", "--disable-auto-launch"]
    log_file = base / f"server_{port}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=comfyui.path,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        server = Server(f"http://127.0.0.1:{port}", base, pack, log_file, process)
        # a run that is told to end, by `timeout` say, must not leave the server behind
        handler = signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", returncode=143))
        try:
            _wait_until_ready(server, process)
            yield server
        finally:
            signal.signal(signal.SIGTERM, handler)
            _stop(process)


@pytest.fixture(scope="session")
def server(comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the whole run, with empty models, inputs and outputs."""
    with _running(comfyui, tmp_path_factory.mktemp("comfyui")) as server:
        yield server


@pytest.fixture
def start_server(
    comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Server]]:
    """Start another server, by default with a base directory of its own; all end with the test."""
    with ExitStack() as stack:
        yield lambda base=None: stack.enter_context(
            _running(comfyui, base or tmp_path_factory.mktemp("other"))
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


CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]


@pytest.fixture(scope="session")
def page(server: Server) -> Iterator[Any]:
    """ComfyUI's page in a browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"no Chromium at {CHROMIUM}")
    pictures = sorted((ROOT / "pocket" / "pictures" / "test").glob("*.webp"))
    shutil.copy(pictures[0], server.base_directory / "input" / "example.png")
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(8_000)
        open_page(page, server.url)
        yield page
        browser.close()
