"""The Hub's routes: models, files, uploads, commits, branches, pull requests; and the CDN."""

import base64
import hashlib
import json
import re
import secrets
import threading
import time
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

from tests.support.hub_server.faults import Fault, Faults
from tests.support.hub_server.store import Entry, Repo, Store, StoreError, lfs_entry
from tests.support.hub_server.wire import Handler, Route, Server

ID = r"(?P<repo_id>[\w.-]+/[\w.-]+)"
REV = r"(?P<revision>[\w.-]+|refs/pr/\d+)"
FILE = r"(?P<path>.+)"

LICENSES = ("apache-2.0", "cc-by-nc-4.0", "gpl-3.0", "mit", "other")
"""Some of the Hub's licences; a card with another one is refused."""


def routes(*rows: Any) -> tuple[Route, ...]:
    return tuple((method, re.compile(pattern), name) for method, pattern, name in rows)


class HubServer:
    """A running Hub: ``store`` has its repositories, ``log`` the requests, ``arm`` injects faults."""

    def __init__(self) -> None:
        self.store, self.faults = Store(), Faults()
        self.log: list[tuple[str, str, str, bool]] = []
        self.writers = {"writer"}
        self.chunk: int | None = None  # part size for uploads of large files
        self.parts: dict[tuple[str, int], bytes] = {}
        self.silent = False  # whether listings lack hashes and sizes, as on some mirrors
        self.signed: dict[str, dict[str, float]] = {}
        self.lock = threading.Lock()
        self.progress, self.released = threading.Event(), threading.Event()
        self.cdn, self.api = Server(CdnHandler, self), Server(ApiHandler, self)

    @property
    def env(self) -> dict[str, Any]:
        """A client's environment: this endpoint, short timeouts, no other traffic."""
        return {
            "HF_ENDPOINT": self.api.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            "HF_HUB_ETAG_TIMEOUT": "5",
            "HF_HUB_OFFLINE": "0",
        }

    def arm(self, *faults: Fault) -> None:
        """Replace the armed faults."""
        self.faults.armed = [replace(fault, hits=0) for fault in faults]
        self.log.clear()
        self.progress.clear()

    def close(self) -> None:
        """Stop both origins."""
        self.released.set()
        for server in (self.api, self.cdn):
            server.shutdown()
            server.server_close()

    def sign(self, sha256: str, uses: float) -> str:
        """Return a CDN URL that expires."""
        signature = secrets.token_hex(8)
        with self.lock:
            self.signed[signature] = {"uses": uses, "until": time.time() + 60}
        return f"{self.cdn.url}/lfs/{sha256}?Signature={signature}"

    def multipart(self, sha256: str | None, size: int) -> Any:
        """Return the upload URLs for a large file's parts and for their list."""
        signed = {name: self.sign(sha256, uses=99).partition("?")[2] for name in ("parts", "list")}
        count = -(-size // self.chunk)
        urls = {str(n): f"{self.cdn.url}/part/{sha256}/{n}?{signed['parts']}" for n in range(1, count + 1)}
        href = f"{self.cdn.url}/complete/{sha256}?{signed['list']}"
        return {"href": href, "header": {"chunk_size": str(self.chunk), **urls}}

    def check_signature(self, signature: str) -> None:
        """Raise unless the signature is still valid."""
        with self.lock:
            grant = self.signed.get(signature, {"uses": 0, "until": 0})
            if grant["uses"] < 1 or grant["until"] < time.time():
                raise StoreError(403, "", "Request has expired")
            grant["uses"] -= 1


class CdnHandler(Handler):
    """Large files. A request with a token is refused, as S3 refuses two kinds of authorisation."""

    origin = "cdn"
    routes = routes(
        ("GET HEAD", r"/lfs/(?P<sha256>\w{64})", "download"),
        ("PUT", r"/lfs/(?P<sha256>\w{64})", "upload"),
        ("PUT", r"/part/(?P<sha256>\w{64})/(?P<number>\d+)", "upload_part"),
        ("POST", r"/complete/(?P<sha256>\w{64})", "complete"),
    )

    def route(self) -> None:
        if self.token:
            raise StoreError(400, "InvalidArgument", "Only one auth mechanism allowed")
        self.server.hub.check_signature(self.query.get("Signature", [""])[0])
        super().route()

    def download(self, sha256: str) -> None:
        content = self.server.hub.store.contents.get(sha256)
        if content is None:
            raise StoreError(404, "NoSuchKey")
        self.reply_file(content, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})

    def upload(self, sha256: str) -> None:
        entry = self.server.hub.store.add(self.received(), "x.safetensors")
        if entry.sha256 != sha256:
            del self.server.hub.store.contents[entry.sha256]
            raise StoreError(400, "BadDigest", "the content has another sha256")
        self.reply(200)

    def received(self) -> Any:
        """Return the body as it arrived, through this request's fault."""
        body = bytearray(self.body)
        if self.fault.flip is not None:
            body[self.fault.flip] ^= 1
        return bytes(body)

    def upload_part(self, sha256: str | None, number: int) -> None:
        if self.fault.truncate is None:  # otherwise the part is lost although the answer reports success
            self.server.hub.parts[sha256, int(number)] = self.received()
        self.reply(200, b"", {"ETag": f'"{number}"'})

    def complete(self, sha256: str | None) -> None:
        parts = self.server.hub.parts
        content = b"".join(parts[key] for key in sorted(parts) if key[0] == sha256)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise StoreError(400, "BadDigest", "the parts do not make the content")
        self.server.hub.store.add(content, "x.safetensors")
        self.reply(200)


class ApiHandler(Handler):
    """The API and small files."""

    origin = "hub"
    routes = routes(
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/repos/create", "create_repo"),
        ("GET HEAD", rf"/api/models/{ID}", "model_info"),
        ("GET HEAD", rf"/api/models/{ID}/revision/{REV}", "model_info"),
        ("GET", rf"/api/models/{ID}/auth-check", "auth_check"),
        ("GET", rf"/api/models/{ID}/discussions", "discussions"),
        ("GET", rf"/api/models/{ID}/tree/{REV}(?:/.*)?", "tree"),
        ("POST", rf"/api/models/{ID}/paths-info/{REV}", "paths_info"),
        ("POST", rf"/api/models/{ID}/preupload/{REV}", "preupload"),
        ("POST", rf"/{ID}\.git/info/lfs/objects/batch", "lfs_batch"),
        ("POST", rf"/api/models/{ID}/commit/{REV}", "commit"),
        ("POST", rf"/api/models/{ID}/branch/(?P<branch>.+)", "create_branch"),
        ("GET HEAD", rf"/{ID}/resolve/{REV}/{FILE}", "resolve"),
    )

    @property
    def store(self) -> Store:
        return self.server.hub.store

    def check_writer(self, repo_id: str) -> None:
        if self.token not in self.server.hub.writers:
            raise StoreError(403 if self.token else 401, "", "You don't have the rights to write here")
        self.store.repo(repo_id, self.token)

    def tree_of(self, repo_id: str, revision: str | None) -> tuple[Repo, str, dict[str, Entry]]:
        repo = self.store.repo(repo_id, self.token)
        sha = repo.resolve(revision)
        return repo, sha, repo.files[sha]

    def whoami(self) -> None:
        if self.token not in self.server.hub.writers:
            raise StoreError(401, "", "Invalid username or password.")
        self.reply_json({"type": "user", "name": "writer", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def validate_yaml(self) -> None:
        license = re.search(r"^license: (.*)$", json.loads(self.body)["content"], re.MULTILINE)
        wrong = bool(license) and license[1] not in LICENSES
        errors = [{"message": f'"license" must be one of [{", ".join(LICENSES)}]'}] if wrong else []
        self.reply_json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def create_repo(self) -> None:
        asked = json.loads(self.body)
        if self.token not in self.server.hub.writers:
            raise StoreError(403 if self.token else 401, "", "You don't have the rights to create a model here")
        repo_id = f"{asked.get('organization') or 'writer'}/{asked['name']}"
        private = asked.get("private") or asked.get("visibility") == "private"
        url = f"{self.server.url}/{repo_id}"
        try:
            self.store.create(repo_id, {self.token} if private else None)
        except StoreError as error:
            self.reply_json({"error": str(error), "url": url}, error.status)
            return
        self.reply_json({"url": url})

    def model_info(self, repo_id: str, revision: str = "main") -> None:
        repo, sha, files = self.tree_of(repo_id, revision)
        told = "blobs" in self.query and not self.server.hub.silent
        siblings = [{"rfilename": path, **(details(entry) if told else {})} for path, entry in files.items()]
        gated = "manual" if repo.gated else False
        self.reply_json({"id": repo_id, "sha": sha, "private": repo.readers is not None, "gated": gated, "tags": [],
                         "downloads": 0, "likes": 0, "siblings": siblings})  # fmt: skip

    def auth_check(self, repo_id: str) -> None:
        self.store.check_files(repo_id, self.token)
        self.reply_json({})

    def discussions(self, repo_id: str) -> None:
        repo = self.store.repo(repo_id, self.token)
        rows = [{**pull, "author": {"name": "writer"}, "createdAt": "2026-01-01T00:00:00.000Z", "isPullRequest": True,
                 "repo": {"name": repo_id, "type": "model"}}
                for pull in repo.pulls]  # fmt: skip
        self.reply_json({"discussions": rows, "count": len(rows), "start": 0})

    def tree(self, repo_id: str, revision: str | None) -> None:
        _, _, files = self.tree_of(repo_id, revision)
        self.reply_json([tree_row(path, entry) for path, entry in files.items()])

    def paths_info(self, repo_id: str, revision: str | None) -> None:
        _, _, files = self.tree_of(repo_id, revision)
        asked = parse_qs(self.body.decode()).get("paths", [])
        self.reply_json([tree_row(path, files[path]) for path in asked if path in files])

    def preupload(self, repo_id: str, revision: str | None) -> None:
        self.check_writer(repo_id)
        _, _, files = self.tree_of(repo_id, revision)
        rows = []
        for file in json.loads(self.body)["files"]:
            path, entry = file["path"], files.get(file["path"])
            mode = "lfs" if path.endswith((".bin", ".safetensors")) or file["size"] > 10_000_000 else "regular"
            oid = (entry.sha256 or entry.blob_id) if entry else None
            rows.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.reply_json({"files": rows})

    def lfs_batch(self, repo_id: str) -> None:
        self.check_writer(repo_id)
        hub, rows = self.server.hub, []
        for item in json.loads(self.body)["objects"]:
            row = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.store.contents and hub.chunk:
                row["actions"] = {"upload": hub.multipart(item["oid"], item["size"])}
            elif item["oid"] not in self.store.contents:
                row["actions"] = {"upload": {"href": hub.sign(item["oid"], uses=99)}}
            rows.append(row)
        self.reply_json({"transfer": "basic", "objects": rows})

    def commit(self, repo_id: str, revision: str) -> None:
        self.check_writer(repo_id)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        files: dict[str, bytes | Entry] = {}
        delete: list[str] = []
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.store.contents:
                    raise StoreError(400, "", "the large file was not uploaded")
                files[value["path"]] = lfs_entry(value["oid"], value["size"])
            else:
                delete.append(value["path"])
        pull = "create_pr" in self.query
        parent = header.get("parentCommit")
        sha = self.store.commit(repo_id, revision, files, delete, parent, header["summary"], pull)
        url = f"{self.server.url}/{repo_id}"
        number = len(self.store.repos[repo_id].pulls)
        self.reply_json({"success": True, "commitOid": sha, "commitUrl": f"{url}/commit/{sha}", "hookOutput": "",
                         "pullRequestUrl": f"{url}/discussions/{number}" if pull else None})  # fmt: skip

    def create_branch(self, repo_id: str, branch: str) -> None:
        self.check_writer(repo_id)
        repo = self.store.repo(repo_id, self.token)
        if f"refs/heads/{branch}" in repo.refs:
            raise StoreError(409, "", "Reference already exists")
        start = (json.loads(self.body) if self.body else {}).get("startingPoint", "main")
        repo.refs[f"refs/heads/{branch}"] = repo.resolve(start)
        self.reply_json({})

    def resolve(self, repo_id: str, revision: str | None, path: str) -> None:
        self.store.check_files(repo_id, self.token)
        _, sha, files = self.tree_of(repo_id, revision)
        if path not in files:
            raise StoreError(404, "EntryNotFound")
        entry, headers = files[path], {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if entry.sha256 is None:
            self.reply_file(self.store.content(entry), headers | {"ETag": f'"{entry.blob_id}"'})
            return
        linked = {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": entry.size, "ETag": f'"{entry.blob_id}"'}
        location = self.server.hub.sign(entry.sha256, uses=1 if self.fault.once_only else 10**6)
        self.reply(302, b"", headers | linked | {"Location": location})


def details(entry: Any) -> dict[str, Any]:
    lfs = {"sha256": entry.sha256, "size": entry.size, "pointerSize": 134} if entry.sha256 else None
    return {"blobId": entry.blob_id, "size": entry.size, **({"lfs": lfs} if lfs else {})}


def tree_row(path: str, entry: Any) -> dict[str, Any]:
    lfs = {"oid": entry.sha256, "size": entry.size, "pointerSize": 134} if entry.sha256 else None
    return {"type": "file", "oid": entry.blob_id, "size": entry.size, "path": path, **({"lfs": lfs} if lfs else {})}
