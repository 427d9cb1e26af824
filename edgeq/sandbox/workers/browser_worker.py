"""Loads and runs models with onnxruntime-web in a headless Chromium.

It speaks the protocol of ``ort_worker.py`` (one JSON object per line, arrays in .npz files) and serves
``browser_page.html`` on the loopback address, under a path that nobody else knows. It serves the files of
the current task, the page and ONNX Runtime, and nothing else.

Arguments: the folder of onnxruntime-web, ``wasm`` or ``webgpu``, the browser's profile folder, and the
command that starts the browser.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import queue
import secrets
import subprocess
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import onnx

__all__ = ["main"]

_HERE = Path(__file__).resolve().parent
_BUILDS = {"wasm": "ort.wasm.min.mjs", "webgpu": "ort.webgpu.min.mjs"}
_POLL_S = 20.0
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",  # with the next: threads and their shared memory are allowed
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Content-Security-Policy": "default-src 'self' 'wasm-unsafe-eval' blob:",
    "Cache-Control": "no-store",
}
_KINDS = {".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm"}
_TYPES = {"float16", "float32", "float64", "bool", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))}


class _Desk:
    """What the page asks for and what it brings, one task at a time; ``files`` are all that it may read."""

    def __init__(self, runtime: Path) -> None:
        self.secret = secrets.token_urlsafe(24)
        self.fixed = {f"ort/{file.name}": file for file in runtime.iterdir() if file.suffix in (".mjs", ".wasm")}
        self.fixed |= {name: _HERE / name for name in ("browser_page.html", "browser_page.mjs")}
        self.files: dict[str, Path | bytes] = {}
        self.tasks: queue.Queue[dict[str, Any]] = queue.Queue(1)
        self.answers: queue.Queue[bytes] = queue.Queue()
        self.awake = threading.Event()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, desk: _Desk) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.desk = desk


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        name, desk = self._name(), self.server.desk
        if name == "task":
            desk.awake.set()
            try:
                self._send(200, json.dumps(desk.tasks.get(timeout=_POLL_S)).encode(), "application/json")
            except queue.Empty:
                self._send(204)
        elif name in desk.fixed:
            self._send_file(desk.fixed[name])
        elif name.removeprefix("files/") in desk.files:
            self._send_file(desk.files[name.removeprefix("files/")])
        else:
            self._send(404)

    def do_POST(self) -> None:
        if self._name() != "answer":
            self._send(404)
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._send(204)
        self.server.desk.answers.put(body)

    def _name(self) -> str:
        """The path behind the secret, without the query; empty for whoever does not know it."""
        _, _, path = self.path.partition("?")[0].partition("/")
        secret, _, name = path.partition("/")
        return name if secrets.compare_digest(secret.encode(), self.server.desk.secret.encode()) else ""

    def _send_file(self, source: Path | bytes) -> None:
        if isinstance(source, Path):
            self._send(200, source.read_bytes(), _KINDS.get(source.suffix, "application/octet-stream"))
        else:
            self._send(200, source, "application/octet-stream")

    def _send(self, status: int, data: bytes = b"", kind: str = "text/plain") -> None:
        with contextlib.suppress(OSError):  # a page that was left
            self.send_response(status)
            for key, value in {**_HEADERS, "Content-Type": kind}.items():
                self.send_header(key, value)
            if status != 204:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *_: Any) -> None:  # noqa: A002 the base class names it
        """Nothing: stderr is for the browser's words."""


def main() -> None:
    """Answer each line of stdin until it ends; the browser ends with this process's group."""
    folder, provider, profile, *browser = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    desk = _Desk(Path(folder))
    server = _Server(desk)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = f"http://127.0.0.1:{server.server_port}/{desk.secret}/browser_page.html"
    process = _start(browser, profile, f"{page}?provider={provider}&build={_BUILDS[provider]}")
    threading.Thread(target=_end_with, args=(process,), daemon=True).start()
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(lines, process), daemon=True).start()
    desk.awake.wait()
    package = json.loads((Path(folder) / "package.json").read_text(encoding="utf-8"))
    version = f"{package['name']} {package['version']} ({provider}), {_version(browser[0])}"
    _write(answers, {"ready": version})
    while True:
        line = lines.get()
        try:
            answer = _perform(desk, json.loads(line))
        except Exception as error:  # a model that cannot be read, say
            answer = {"status": "refused", "reason": str(error) or type(error).__name__}
        _write(answers, {**answer, "version": version})


def _read(lines: queue.Queue[str], browser: subprocess.Popen[bytes]) -> None:
    for line in sys.stdin:
        lines.put(line)
    browser.kill()
    browser.wait()
    os._exit(0)  # also when a task is running, or the page was never asked for


def _start(browser: Sequence[str], profile: str, address: str) -> subprocess.Popen[bytes]:
    """The browser, which keeps all that it writes in ``profile``.

    Every user of the machine may read command lines, so that the address is in a file that only this one may.
    """
    first = Path(profile) / "first.html"
    first.write_text(f'<meta http-equiv="refresh" content="0; url={html.escape(address)}">', encoding="utf-8")
    settings = {**os.environ, "HOME": profile, "XDG_CACHE_HOME": profile, "XDG_CONFIG_HOME": profile}
    command = [*browser, f"--user-data-dir={profile}/data", first.as_uri()]
    return subprocess.Popen(command, env=settings, stdin=subprocess.DEVNULL)


def _end_with(process: subprocess.Popen[bytes]) -> None:
    """Without a browser there is nothing to wait for."""
    code = process.wait()
    sys.stderr.write(f"the browser ended with exit code {code}\n")
    sys.stderr.flush()
    os._exit(1)


def _version(browser: str) -> str:
    try:
        found = subprocess.run([browser, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "Chromium"
    words = found.stdout.split()
    number = next((index for index, word in enumerate(words) if word[0].isdigit()), len(words) - 1)
    return " ".join(words[: number + 1]) or "Chromium"


def _write(stream: TextIO, answer: dict[str, Any]) -> None:
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


def _perform(desk: _Desk, task: dict[str, Any]) -> dict[str, Any]:
    """What the page is (``about``), one model as ``ort_worker.py`` takes it, or ``entries`` that may be timed."""
    if task.get("about"):
        return _ask(desk, {"about": True})[0]
    entries = task.get("entries", [task])
    desk.files = {"nothing": _nothing()}
    graphs = [onnx.load(entry["model"], load_external_data=False).graph for entry in entries]
    asked = {
        "entries": [_entry(desk, str(index), entry, graphs[index]) for index, entry in enumerate(entries)],
        "feeds": [_feed(desk, index, feed) for index, feed in enumerate(task["feeds"])],
        "threads": int(task["arguments"].get("threads", 1)),
        "measure": task.get("measure"),
        "profile": task.get("profile"),
    }
    answer, body = _ask(desk, asked)
    if answer["status"] != "ran":
        return answer
    for graph, entry, run in zip(graphs, entries, answer["runs"], strict=True):
        body = _save(entry.get("feeds", []), run.pop("outputs"), body)
        run["assigned"] = {**run["assigned"], **{node.name: run["all"] for node in graph.node if run["all"]}} or None
    return answer if "entries" in task else {"status": "ran", **answer["runs"][0]}


def _ask(desk: _Desk, task: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    desk.tasks.put(task)
    head, _, body = desk.answers.get().partition(b"\n")
    return dict(json.loads(head)), body


def _entry(desk: _Desk, number: str, entry: dict[str, Any], graph: onnx.GraphProto) -> dict[str, Any]:
    """One model as the page wants it, its files among ``desk.files``."""
    model, provider = Path(entry["model"]), entry["provider"]
    external = {f"data{number}-{index}": name for index, name in enumerate(_external(graph, model.parent))}
    desk.files |= {f"model{number}": model, **{file: model.parent / name for file, name in external.items()}}
    return {
        "model": f"model{number}",
        "external": [{"path": name, "file": file} for file, name in external.items()],
        "options": provider["options"],
        "session": provider["session"],
    }


def _nothing() -> bytes:
    """A model that does nothing, with which ONNX Runtime is started before anything is timed."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [])
    graph.output.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1]))
    opset = onnx.helper.make_opsetid("", 17)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()


def _feed(desk: _Desk, number: int, feed: dict[str, Any]) -> list[dict[str, Any]]:
    """One batch as the page wants it, its arrays among ``desk.files``."""
    inputs = []
    with np.load(feed["file"], allow_pickle=False) as arrays:
        for index, name in enumerate(feed["names"]):
            array = arrays[f"a{index}"]
            if array.dtype.name not in _TYPES:
                raise ValueError(f"input {name!r} has type {array.dtype}, which onnxruntime-web does not take")
            file = f"in{number}-{index}"
            desk.files[file] = np.ascontiguousarray(array).tobytes()
            inputs.append({"name": name, "type": array.dtype.name, "dims": list(array.shape), "file": file})
    return inputs


def _save(feeds: Sequence[dict[str, Any]], batches: Sequence[Sequence[dict[str, Any]]], body: bytes) -> bytes:
    """Outputs lie in ``body`` one behind the other, as ``batches`` says; what follows them is returned."""
    start = 0
    for feed, outputs in zip(feeds, batches, strict=True):
        values: dict[str, Any] = {}
        for index, output in enumerate(outputs):
            if output["type"] not in _TYPES:
                raise ValueError(f"output {output['name']!r} has type {output['type']}, which numpy lacks")
            data = body[start : start + output["bytes"]]
            values[f"a{index}"] = np.frombuffer(data, np.dtype(output["type"])).reshape(output["dims"])
            start += output["bytes"]
        with Path(feed["output"]).open("wb") as stream:
            np.savez(stream, **values)
    return body[start:]


def _external(graph: onnx.GraphProto, folder: Path) -> list[str]:
    """Names of the files with external data: those in the model's folder or below it, never others."""
    graphs, names = [graph], set()
    while graphs:
        graph = graphs.pop()
        attributes = [attribute for node in graph.node for attribute in node.attribute]
        graphs += [attribute.g for attribute in attributes if attribute.HasField("g")]
        graphs += [inner for attribute in attributes for inner in attribute.graphs]
        for tensor in (*graph.initializer, *(attribute.t for attribute in attributes)):
            names |= {entry.value for entry in tensor.external_data if entry.key == "location"}
    for name in names:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"the model keeps data in {name!r}, which is not in its folder")
    return sorted(names)


if __name__ == "__main__":
    main()
