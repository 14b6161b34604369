"""A Hub on the loopback address: as much of its protocol as reading and pushing take, and faults on request."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from .repositories import (
    Hub,
    HubError,
    Repository,
    describe_tree,
    git_oid,
    is_large,
    large_file_oid,
)

_NAME = r"(?P<name>[^/]+/[^/]+)"
_API = rf"/api/(?P<kind>model|dataset|space)s/{_NAME}"
_RESOLVE = rf"/(?:(?P<kind>dataset|space)s/)?{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
_LARGE_FILES = rf"/(?:(?P<kind>dataset|space)s/)?{_NAME}\.git/info/lfs/objects/batch"


class HubServer:
    """
    Serves a [`Hub`] on a free port of the loopback address.

    Attributes:
        hub ([`Hub`]): what is served.
        endpoint (`str`): its address, for `HF_ENDPOINT`.
        requests (`list[str]`): method and path of what was asked for.
        pause (`threading.Event`): while it is not set, nothing is answered.
    """

    def __init__(self):
        self.hub = Hub()
        self.requests: list[str] = []
        self.pause = threading.Event()
        self.pause.set()
        self.cuts: list[tuple[str, int]] = []
        handler = type("Handler", (_Handler,), {"server_of": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"

    def cut(self, pattern: str, after: int):
        """Hangs up, once, on the next request whose method and path match, when `after` bytes of a file have gone."""
        self.cuts.append((pattern, after))

    def stall(self, seconds: float):
        """Answers nothing for a while."""
        self.pause.clear()
        threading.Timer(seconds, self.pause.set).start()

    def take_cut(self, request: str) -> int | None:
        for pattern, after in self.cuts:
            if re.search(pattern, request):
                self.cuts.remove((pattern, after))
                return after
        return None

    def environment(self, **others: str) -> dict[str, str]:
        """Variables that send `huggingface_hub` here, without the storage that only the real Hub has."""
        quiet = {
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        return {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1", **quiet, **others}

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object):
        self.pause.set()
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Header and content go in two pieces: the second would wait 40 ms for the receipt of the first.
    disable_nagle_algorithm = True
    server_of: HubServer

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def do_PUT(self):
        self._answer()

    def log_message(self, *_: object):
        pass

    @property
    def hub(self) -> Hub:
        return self.server_of.hub

    @property
    def token(self) -> str | None:
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        return token if kind == "Bearer" else None

    def _answer(self):
        address = urlsplit(self.path)
        request = f"{self.command} {unquote(address.path)}"
        self.server_of.requests.append(request)
        self.server_of.pause.wait()
        self.query = {key: values[-1] for key, values in parse_qs(address.query).items()}
        try:
            with _hung_up():
                self.body = self._read_body(request)
                self._route(address.path)
        except HubError as error:
            self._send_error(error)
        except ConnectionError:
            self.close_connection = True

    def _read_body(self, request: str) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        cut = self.server_of.take_cut(request) if self.command in ("PUT", "POST") else None
        if cut is not None:
            self.rfile.read(min(cut, length))
            raise ConnectionResetError
        return self.rfile.read(length)

    def _route(self, path: str):
        for methods, pattern, action in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods:
                fields = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                action(self, **fields)
                return
        raise HubError(404, f"Not found: {path}")

    def _repository(self, name: str, kind: str = "model") -> Repository:
        return self.hub.find(kind, name, self.token)

    def _send_json(self, content: Any, status: int = 200):
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    def _send_error(self, error: HubError):
        headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
        self._send(json.dumps({"error": error.message}).encode(), error.status, headers)

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.server_of.take_cut(f"{self.command} {unquote(urlsplit(self.path).path)}")
        self.wfile.write(content[:cut])
        if cut is not None:
            self.wfile.flush()
            self.connection.close()
            raise ConnectionResetError

    def whoami(self):
        user = self.hub.user_of(self.token)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        self._send_json({"name": user, "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def validate(self):
        """As strict on a card's header as the Hub: it must be a mapping, and what it names must be names."""
        content = json.loads(self.body)["content"]
        errors = [{"message": message} for message in header_errors(content)]
        self._send_json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def create(self):
        request = json.loads(self.body)
        owner = request.get("organization") or self.hub.check_owner(self.hub.user_of(self.token) or "", self.token)
        name, kind = f"{owner}/{request['name']}", request.get("type") or "model"
        self.hub.check_owner(name, self.token)
        prefix = "" if kind == "model" else f"/{kind}s"
        url = {"url": f"{self.server_of.endpoint}{prefix}/{name}", "name": name}
        if (kind, name) in self.hub.repositories:
            self._send_json(url | {"error": "You already created this repo"}, 409)
            return
        self.hub.create(name, kind=kind, private=request.get("visibility") == "private")
        self._send_json(url)

    def info(self, name: str, kind: str, revision: str = "main"):
        repository = self._repository(name, kind)
        commit = repository.at(revision)
        description = {
            "_id": "0",
            "id": name,
            "sha": commit.sha,
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }
        self._send_json(description)

    def tree(self, name: str, kind: str, revision: str, path: str = ""):
        repository = self._repository(name, kind)
        self.hub.check_access(repository, self.token)
        recursive = self.query.get("recursive", "").lower() in ("1", "true")
        self._send_json(describe_tree(repository.at(revision).files, path, recursive))

    def paths_info(self, name: str, kind: str, revision: str):
        repository = self._repository(name, kind)
        self.hub.check_access(repository, self.token)
        asked = self._form("paths")
        entries = describe_tree(repository.at(revision).files, "", recursive=True)
        self._send_json([entry for entry in entries if entry["path"] in asked])

    def _form(self, key: str) -> list[str]:
        """A list in the body, which comes as JSON or as a form."""
        if "json" in self.headers.get("Content-Type", ""):
            return json.loads(self.body)[key]
        return parse_qs(self.body.decode())[key]

    def references(self, name: str, kind: str):
        repository = self._repository(name, kind)
        branches = [
            {"name": reference, "ref": f"refs/heads/{reference}", "targetCommit": sha}
            for reference, sha in repository.references.items()
            if not reference.startswith("refs/")
        ]
        self._send_json({"branches": branches, "converts": [], "tags": []})

    def branch(self, name: str, kind: str, branch: str):
        self.hub.check_owner(name, self.token)
        repository = self._repository(name, kind)
        if branch in repository.references:
            raise HubError(409, f"Reference {branch} exists already")
        repository.references[branch] = repository.references["main"]
        self._send_json({}, 201)

    def may_write(self, name: str, kind: str):
        self._writable(name, kind)
        self._send_json({})

    def discussions(self, name: str, kind: str):
        self._repository(name, kind)
        self._send_json({"discussions": [], "count": 0, "start": 0})

    def resolve(self, name: str, revision: str, path: str, kind: str = "model"):
        repository = self._repository(name, kind)
        self.hub.check_access(repository, self.token)
        content = repository.file(revision, path)
        headers = {
            "ETag": f'"{git_oid(content)}"',
            "X-Repo-Commit": repository.at(revision).sha,
            "Accept-Ranges": "bytes",
            "Access-Control-Expose-Headers": "*",
        }
        if is_large(path):
            headers |= {"X-Linked-Etag": f'"{large_file_oid(content)}"', "X-Linked-Size": str(len(content))}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not part:
            self._send(content, headers=headers)
            return
        start, stop = int(part[1]), min(int(part[2] or len(content)) + 1, len(content))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self._send(content[start:stop], 206, headers)

    def preupload(self, name: str, kind: str, revision: str):
        repository = self._writable(name, kind)
        files = repository.at(revision).files
        answers = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if is_large(file["path"]) else "regular",
                "shouldIgnore": False,
                "oid": _remote_oid(files, file["path"]),
            }
            for file in json.loads(self.body)["files"]
        ]
        self._send_json({"files": answers})

    def large_files(self, name: str, kind: str = "model"):
        self._writable(name, kind)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            is_known = asked["oid"] in self.hub.large_files
            upload = {"upload": {"href": f"{self.server_of.endpoint}/large/{asked['oid']}", "header": {}}}
            objects.append(asked | ({} if is_known else {"actions": upload}))
        self._send_json({"transfer": "basic", "objects": objects})

    def upload(self, oid: str):
        if large_file_oid(self.body) != oid:
            raise HubError(400, "The content does not match its hash")
        self.hub.large_files[oid] = self.body
        self._send(b"")

    def commit(self, name: str, kind: str, revision: str):
        repository = self._writable(name, kind)
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        files, title = dict(repository.at(revision).files), lines[0]["value"]["summary"]
        for line in lines[1:]:
            self._apply(line["key"], line["value"], files)
        parent = repository.at(revision).sha
        opens_pull_request = self.query.get("create_pr") == "1"
        reference = repository.open_pull_request() if opens_pull_request else revision
        commit = repository.commit(reference, files, title, parent)
        base = f"{self.server_of.endpoint}/{name}"
        answer = {"success": True, "commitOid": commit.sha, "commitUrl": f"{base}/commit/{commit.sha}"}
        if opens_pull_request:
            answer["pullRequestUrl"] = f"{base}/discussions/{repository.pull_requests}"
        self._send_json(answer)

    def _apply(self, key: str, value: dict[str, str], files: dict[str, bytes]):
        path = value["path"]
        if key == "file":
            files[path] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            if value["oid"] not in self.hub.large_files:
                raise HubError(400, f"{path} was not uploaded")
            files[path] = self.hub.large_files[value["oid"]]
        elif key == "deletedFile":
            del files[path]
        elif key == "deletedFolder":
            for inside in [known for known in files if known.startswith(path.rstrip("/") + "/")]:
                del files[inside]

    def _writable(self, name: str, kind: str) -> Repository:
        repository = self._repository(name, kind)
        self.hub.check_owner(name, self.token)
        return repository


_ROUTES = [
    (("GET",), r"/api/whoami-v2", _Handler.whoami),
    (("POST",), r"/api/validate-yaml", _Handler.validate),
    (("POST",), r"/api/repos/create", _Handler.create),
    (("GET",), _API, _Handler.info),
    (("GET",), _API + r"/revision/(?P<revision>.+)", _Handler.info),
    (("GET",), _API + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", _Handler.tree),
    (("POST",), _API + r"/paths-info/(?P<revision>.+)", _Handler.paths_info),
    (("GET",), _API + r"/refs", _Handler.references),
    (("POST",), _API + r"/branch/(?P<branch>.+)", _Handler.branch),
    (("GET",), _API + r"/auth-check/write", _Handler.may_write),
    (("GET",), _API + r"/discussions", _Handler.discussions),
    (("POST",), _API + r"/preupload/(?P<revision>.+)", _Handler.preupload),
    (("POST",), _API + r"/commit/(?P<revision>.+)", _Handler.commit),
    (("POST",), _LARGE_FILES, _Handler.large_files),
    (("PUT",), r"/large/(?P<oid>[0-9a-f]{64})", _Handler.upload),
    (("GET", "HEAD"), _RESOLVE, _Handler.resolve),
]


def header_errors(card: str) -> list[str]:
    """What the Hub would refuse about a card's header."""
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    if not match:
        return []
    try:
        header = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"The header is not YAML: {error}"]
    if not isinstance(header, dict):
        return ["The header must be a mapping"]
    errors = [
        f'"{key}" must be a string'
        for key in ("license", "library_name", "pipeline_tag")
        if not isinstance(header.get(key, ""), str)
    ]
    lists = ("tags", "datasets", "widget", "model-index", "models")
    return errors + [f'"{key}" must be a list' for key in lists if not isinstance(header.get(key, []), list)]


def _remote_oid(files: dict[str, bytes], path: str) -> str | None:
    if path not in files:
        return None
    return large_file_oid(files[path]) if is_large(path) else git_oid(files[path])


@contextmanager
def _hung_up() -> Iterator[None]:
    """Other ways in which a client goes away."""
    try:
        yield
    except (BrokenPipeError, TimeoutError) as error:
        raise ConnectionResetError from error
