"""A small Hub on loopback, and a process that loads weights from it.

``HubServer`` answers what huggingface_hub's ``hf_hub_download`` asks for: HEAD and GET of
/{repo}/resolve/{revision}/{file}, with the headers and the error codes of the real Hub.

huggingface_hub reads HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE when it is imported, so each load needs a process of its
own. ``Loader`` starts one process that imports torch and this package, but not huggingface_hub, and forks it for each
load: run as a script, this file is that process.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

LARGE_FILES = (".safetensors", ".bin")
LOAD_SECONDS = 60


@dataclass(frozen=True)
class Request:
    """One request for a file, as it came in."""

    method: str
    repo: str
    revision: str
    file: str
    headers: dict[str, str]


class HubServer:
    """Repositories with branches and commits on an ephemeral port; requests for files are kept in ``requests``.

    Attributes:
        tampered: file name -> what GET sends in its place, while HEAD goes on describing the true file.
        failing: file name -> the HTTP status that it is answered with, such as 503.
        failures: how many requests fail in that way; None for all.
        headers, headers_of: what replaces the true headers, of every file and by file name.
        chunked: names of files that GET sends without saying how long they are.
    """

    def __init__(self):
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}
        self.branches: dict[tuple[str, str], str] = {}
        self.tampered: dict[str, bytes] = {}
        self.failing: dict[str, int] = {}
        self.failures: int | None = None
        self.headers: dict[str, str] = {}
        self.headers_of: dict[str, dict[str, str]] = {}
        self.chunked: set[str] = set()
        self.requests: list[Request] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def publish(self, repo: str, files: dict[str, bytes], *, branch: str = "main", commit: str = "") -> str:
        """Make a commit with these files the head of a branch, and return its 40 hex digits."""
        commit = commit or hashlib.sha1(f"{repo} {branch} {len(self.commits)}".encode()).hexdigest()
        self.commits[repo, commit] = dict(files)
        self.branches[repo, branch] = commit
        return commit

    def asked(self, method: str) -> list[str]:
        """The files that were asked for with HEAD or GET, in order."""
        return [request.file for request in self.requests if request.method == method]

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = unquote(self.path.partition("?")[0]).strip("/")
        repo, resolve, rest = path.partition("/resolve/")
        if not resolve:  # huggingface_hub asks for a registry of its own too
            return self._send(404, {}, b"", with_body)
        revision, _, file = rest.partition("/")
        self.hub.requests.append(Request(self.command, repo, revision, file, dict(self.headers)))
        if file in self.hub.failing and self.hub.failures != 0:
            self.hub.failures = None if self.hub.failures is None else self.hub.failures - 1
            return self._send(self.hub.failing[file], {}, b"", with_body)
        if repo not in {name for name, _ in self.hub.commits}:
            return self._send(404, {"X-Error-Code": "RepoNotFound"}, b"", with_body)
        commit = self.hub.branches.get((repo, revision), revision)
        files = self.hub.commits.get((repo, commit))
        if files is None:
            return self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"", with_body)
        headers = {"X-Repo-Commit": commit}
        if file not in files:
            return self._send(404, headers | self.hub.headers | {"X-Error-Code": "EntryNotFound"}, b"", with_body)
        content = files[file]
        if file.endswith(LARGE_FILES):  # Git LFS: named by its sha256
            headers |= {
                "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Linked-Size": str(len(content)),
            }
        headers["ETag"] = f'"{hashlib.sha1(b"blob %d%c" % (len(content), 0) + content).hexdigest()}"'
        headers |= self.hub.headers | self.hub.headers_of.get(file, {})
        if with_body and file in self.hub.chunked:
            return self._send_chunks(headers, self.hub.tampered.get(file, content))
        self._send(200, headers, self.hub.tampered.get(file, content) if with_body else content, with_body)

    def _send_chunks(self, headers: dict[str, str], content: bytes) -> None:
        self.send_response(200)
        for name, value in (headers | {"Transfer-Encoding": "chunked"}).items():
            self.send_header(name, value)
        self.end_headers()
        for start in range(0, len(content), 2**16):
            part = content[start : start + 2**16]
            try:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            except ConnectionError:  # the other side has had enough
                self.close_connection = True
                return
        self.wfile.write(b"0\r\n\r\n")

    def _send(self, status: int, headers: dict[str, str], content: bytes, with_body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)


class Loader:
    """The process that loads: ``load`` gives back what a fresh interpreter with this environment would have got."""

    def __init__(self):
        foreign = ("HF_", "HUGGING", "TRANSFORMERS_")
        env = {k: v for k, v in os.environ.items() if not k.startswith(foreign) and not k.lower().endswith("_proxy")}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def load(self, weights: str | None, *, env: dict[str, str], options: dict, pin: dict | None) -> dict:
        """``load_denoiser(weights, **options)``; None takes the default.

        Args:
            pin: what to change about the entry of the default weights, such as their sha256.

        Returns:
            ``source``, ``max_level`` and the sum of the ``weights``; or the ``error``'s classes and ``message``.
            ``waited`` is how many seconds would have been slept between attempts; ``logged`` what this package said.
        """
        job = {"weights": weights, "env": env, "options": options, "pin": pin or {}}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=LOAD_SECONDS)


def serve_loads() -> None:
    """Fork for each job that comes in on stdin, one JSON object a line; the fork writes one line to stdout."""
    import sampdetox_transforms.networks.checkpoints  # noqa: F401  (slow, because of torch: once only)

    if "huggingface_hub" in sys.modules:
        raise RuntimeError("huggingface_hub is imported too early: its environment would be the wrong one")
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                sys.stdout.write(json.dumps(run_job(json.loads(line))) + "\n")
                sys.stdout.flush()
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            sys.stdout.write(json.dumps({"error": ["killed"], "message": f"signal {os.WTERMSIG(status)}"}) + "\n")
            sys.stdout.flush()
    os._exit(0)  # torch takes seconds to leave


def run_job(job: dict) -> dict:
    """One load, in a process of its own."""
    import dataclasses
    import logging
    import signal
    import time

    from sampdetox_transforms import DetoxWeights, load_denoiser

    signal.alarm(LOAD_SECONDS)
    os.environ.update(job["env"])
    waits: list[float] = []
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())
    logging.getLogger("sampdetox_transforms").addHandler(handler)
    said = {"logged": logged}
    time.sleep = waits.append  # huggingface_hub sleeps between attempts: counted here, not waited for
    entry = DetoxWeights.DDPM_CIFAR10_32
    entry._value_ = dataclasses.replace(entry.value, **job["pin"])
    try:
        denoiser = load_denoiser(*([job["weights"]] if job["weights"] else []), **job["options"])
    except Exception as error:
        return {
            "error": [kind.__name__ for kind in type(error).__mro__],
            "message": str(error),
            "waited": sum(waits),
            **said,
        }
    weights = sum(float(value.double().sum()) for value in denoiser.state_dict().values())
    about = {"source": denoiser.source, "max_level": denoiser.max_level}
    return {**about, "weights": weights, "waited": sum(waits), **said}


if __name__ == "__main__":
    serve_loads()
