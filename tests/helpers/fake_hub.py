"""Fake Hugging Face Hub: the part of its HTTP API that transfers files.

Repositories are commits of files; large ones are announced, put aside by hash and committed by
reference, as with Git LFS.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_aSecretThatNobodyShouldSee"


class Hub(ThreadingHTTPServer):
    """Repositories by name: branches, which are commits, which are files."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = {}
        self.private = {}
        self.blobs = {}
        self.commits = {}
        self.requests = []
        # By file: (handler, data, headers) -> None answers instead; by route ("create", "upload",
        # ...): (handler) -> None does.
        self.hostile = {}

    def handle_error(self, request, client_address):
        """Say nothing: a client that has heard enough hangs up."""

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repository, branch, files, message):
        branches = self.repositories[repository]
        before = self.commits.get(branches.get(branch), {}).get("files", {})
        files = {**before, **files}
        parts = [repository, message, str(len(self.commits)), *sorted(files)]
        sha = hashlib.sha1("\n".join(parts).encode()).hexdigest()
        self.commits[sha] = {"files": files, "message": message}
        branches[branch] = sha
        return sha

    def files(self, repository, revision="main"):
        """Names and bytes."""
        sha = self.repositories[repository].get(revision, revision)
        return self.commits[sha]["files"]


@contextmanager
def running():
    """A hub that answers until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status=200, body=b"", **headers):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers["content_type"] = "application/json"
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def stream(self, pieces, **headers):
        """An answer that does not say how long it is, or that is longer than it says."""
        self.send_response(200)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        if "content_length" not in headers:
            self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        if self.command == "HEAD":
            return
        with suppress(OSError):  # the client has heard enough
            for piece in pieces:
                chunk = (
                    piece if "content_length" in headers else b"%x\r\n%s\r\n" % (len(piece), piece)
                )
                self.wfile.write(chunk)
            if "content_length" not in headers:
                self.wfile.write(b"0\r\n\r\n")

    def _read(self):
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _handle(self):
        hub, body = self.server, self._read()
        path = unquote(urlsplit(self.path).path)
        authorization = self.headers.get("authorization")
        hub.requests.append((self.command, path, authorization))
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match is None or method != self.command:
                continue
            if answer.__name__ in hub.hostile:
                with suppress(OSError):  # the client has heard enough
                    hub.hostile[answer.__name__](self)
                return None
            known = match.groupdict().get("repository")
            hidden = hub.private.get(known) and authorization != f"Bearer {TOKEN}"
            if known is not None and (known not in hub.repositories or hidden):
                return self.answer(404, {"error": "no"}, x_error_code="RepoNotFound")
            if (
                method in ("POST", "PUT")
                and authorization != f"Bearer {TOKEN}"
                and not (path.startswith("/lfs/") or path == "/api/validate-yaml")
            ):
                return self.answer(401, {"error": "no"})
            return answer(self, hub, body, **match.groupdict())
        return self.answer(404, {"error": f"no route {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def create(self, hub, body):
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        status = 409 if name in hub.repositories else 200
        if status == 200:
            hub.repositories[name] = {}
            hub.private[name] = asked.get("visibility") == "private"
            hub.commit(name, "main", {".gitattributes": b""}, "initial commit")
        self.answer(status, {"url": f"{hub.address}/{name}"})

    def branch(self, hub, body, repository, revision):
        branches = hub.repositories[repository]
        status = 409 if revision in branches else 200
        branches.setdefault(revision, branches["main"])
        self.answer(status, {})

    def validate(self, hub, body):
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, hub, body, repository, revision):
        self.answer(
            200,
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
            },
        )

    def batch(self, hub, body, repository):
        objects = json.loads(body)["objects"]
        self.answer(
            200,
            {
                "transfer": "basic",
                "objects": [
                    {**each, "actions": {"upload": {"href": f"{hub.address}/lfs/{each['oid']}"}}}
                    for each in objects
                ],
            },
        )

    def upload(self, hub, body, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        hub.blobs[oid] = body
        self.answer(200)

    def take(self, hub, body, repository, revision):
        files, message = {}, ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.blobs[value["oid"]]
        if revision not in hub.repositories[repository]:
            return self.answer(404, {"error": "no"}, x_error_code="RevisionNotFound")
        sha = hub.commit(repository, revision, files, message)
        self.answer(
            200,
            {
                "commitUrl": f"{hub.address}/{repository}/commit/{sha}",
                "commitOid": sha,
            },
        )

    def _commit(self, hub, repository, revision):
        sha = hub.repositories[repository].get(revision, revision)
        if sha not in hub.commits:
            self.answer(404, {"error": "no"}, x_error_code="RevisionNotFound")
            return None
        return sha

    def info(self, hub, body, repository, revision="main"):
        sha = self._commit(hub, repository, revision)
        if sha is not None:
            siblings = [{"rfilename": name} for name in hub.commits[sha]["files"]]
            self.answer(200, {"id": repository, "sha": sha, "siblings": siblings})

    def tree(self, hub, body, repository, revision):
        sha = self._commit(hub, repository, revision)
        if sha is not None:
            self.answer(
                200,
                [
                    {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
                    for name, data in hub.commits[sha]["files"].items()
                ],
            )

    def resolve(self, hub, body, repository, revision, file):
        sha = self._commit(hub, repository, revision)
        if sha is None:
            return
        data = hub.commits[sha]["files"].get(file)
        if data is None:
            return self.answer(404, x_error_code="EntryNotFound", x_repo_commit=sha)
        headers = {"x_repo_commit": sha, "etag": f'"{_oid(data)}"'}
        hostile = hub.hostile.get(file)
        if hostile is None:
            return self.answer(200, data, **headers)
        return hostile(self, data, headers)


def _oid(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


_NAME = r"(?P<repository>[^/]+/[^/]+?)"
_REVISION = r"(?P<revision>[^/]+)"
_ROUTES = [
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", f"/api/models/{_NAME}/branch/{_REVISION}", _Handler.branch),
    ("POST", f"/api/models/{_NAME}/preupload/{_REVISION}", _Handler.preupload),
    ("POST", f"/api/models/{_NAME}/commit/{_REVISION}", _Handler.take),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/lfs/(?P<oid>\w+)", _Handler.upload),
    ("GET", f"/api/models/{_NAME}", _Handler.info),
    ("GET", f"/api/models/{_NAME}/revision/{_REVISION}", _Handler.info),
    ("GET", f"/api/models/{_NAME}/tree/{_REVISION}/?", _Handler.tree),
    ("HEAD", f"/{_NAME}/resolve/{_REVISION}/(?P<file>.+)", _Handler.resolve),
    ("GET", f"/{_NAME}/resolve/{_REVISION}/(?P<file>.+)", _Handler.resolve),
]
