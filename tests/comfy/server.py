"""ComfyUI on this machine, and a server of it with this repository among its custom nodes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
READY_WITHIN = 600.0  # seconds; 20 are usual, a loaded machine needs more

# Loopback only: a proxy set in the environment must not see these requests.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


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


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a ComfyUI process: this one without what belongs to the project's Python."""
    left_out = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    # The repository may be reached through a link: ComfyUI's Python leaves no byte code in it.
    return kept | {"PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"} | changes


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
def running(comfyui: ComfyUI, base: Path) -> Iterator[Server]:
    """A server on a free loopback port, with this base directory."""
    for folder in ("custom_nodes", "input", "temp", "user", "models/loras"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    settings = base / "user" / "default" / "comfy.settings.json"
    if not settings.exists():  # the page's template browser opens by itself the first time, sooner or later
        settings.parent.mkdir(exist_ok=True)
        settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}), encoding="utf-8")
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
            env=environment(),
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
