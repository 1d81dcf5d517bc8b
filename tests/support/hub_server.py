"""A small Hugging Face Hub for the tests: model repositories, in memory, on the loopback interface.

It speaks the real Hub's protocol as far as the library needs it, so tests use the real `huggingface_hub` client. The
fixture `hub` of conftest.py starts one and connects the client to it.

Left out: Xet, multi-part LFS, datasets and Spaces, discussions, metadata from the model card, pages of long listings.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote

from hub_repositories import DATE, LFS_SUFFIXES, Answer, File, Repo, error

USERS = {"alice": ["alice", "lottery-org"], "bob": ["bob"]}  # and the namespaces of each
REPO = "(?P<repo_id>[^/]+(?:/[^/]+)?)"
REVISION = "(?P<revision>[^/]+)"
Change = Callable[[bytes], bytes]


class HubServer:
    """The server, as a context manager: its address `endpoint`, the `repos` by id, a `log` of all requests, and faults.

    The token of a user is hf_ and the name. A repository belongs to its namespace: who has that may push; who may read
    it may open pull requests. Patterns are regular expressions, searched in "METHOD /path", unquoted and without query.
    """

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.log: list[str] = []
        self.faults: list[tuple[str, int | str | Callable[[], object]]] = []
        self.tampered: dict[tuple[str, str], tuple[Change, bool]] = {}
        self.lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": self}))
        self._http.socket.listen(64)  # snapshot_download opens many connections at once
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def env(self, home: Path, token: str | None = "hf_alice") -> dict[str, str]:
        """Environment variables that connect a process to this server, with a home and a cache of its own."""
        on = dict.fromkeys(["HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"], "1")
        paths = {"HF_HOME": f"{home}", "HF_HUB_CACHE": f"{home}/hub", "HF_TOKEN_PATH": f"{home}/token"}
        server = {"HF_ENDPOINT": self.endpoint, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        return {**on, **paths, **server, "HF_HUB_OFFLINE": "0", "HF_TOKEN": token or ""}

    def fail(self, pattern: str, status: int = 503, times: int = 1) -> None:
        """Answer the next matching requests with an error instead of doing what they ask."""
        self.faults += [(pattern, status)] * times

    def drop(self, pattern: str, times: int = 1) -> None:
        """Do what the next matching requests ask, but close the connection in the middle of the answer's body."""
        self.faults += [(pattern, "drop")] * times

    def strike(self, number: int, fault: int | str, times: int = 1) -> None:
        """Let requests fail from the given one on, counted from 0: by a status, "drop", or "cut" (nothing is done)."""
        self.faults += [(".", lambda: None)] * number + [(".", fault)] * times

    def before(self, pattern: str, action: Callable[[], object]) -> None:
        """Call a function before the next matching request is looked at: somebody else may push just then."""
        self.faults.append((pattern, action))

    def tamper(self, repo_id: str, path: str, change: Change, revision: str = "main", consistent: bool = True) -> None:
        """Serve changed bytes for a file of one commit, under the ETag of the true ones.

        HEAD tells the length of the changed bytes too, as GET does, or else (consistent=False) that of the true ones.
        """
        self.tampered[self.repos[repo_id].find(revision).oid, path] = change, consistent

    def requests(self, pattern: str) -> list[str]:
        """The matching lines of the log, which read "METHOD /path status user user-agent"."""
        return [line for line in self.log if re.search(pattern, line)]

    def next_fault(self, request: str) -> int | str | Callable[[], object] | None:
        with self.lock:
            found = next((k for k, (pattern, _) in enumerate(self.faults) if re.search(pattern, request)), None)
            return None if found is None else self.faults.pop(found)[1]


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    user: str | None = None

    def answer(self) -> None:
        path, _, query = self.path.partition("?")
        self.query, self.body = dict(parse_qsl(query)), self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = f"{self.command} {unquote(path)}"
        fault = self.hub.next_fault(request)
        if callable(fault):
            fault()
        if fault == "cut":
            self.close_connection = True
            return
        with self.hub.lock:
            try:
                answer = self._dispatch(path, fault)
            except Answer as raised:
                answer = raised
            except Exception as failure:  # the client shows the text; a broken connection would say nothing
                answer = error(500, ascii(failure))
            self.hub.log.append(f"{request} {answer.status} {self.user} {self.headers.get('User-Agent')}")
        body = b"" if self.command == "HEAD" else answer.body
        if fault == "drop":
            body, self.close_connection = body[: len(body) // 2], True
            if self.command == "HEAD":
                return
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the hub has its own log."""

    def _dispatch(self, path: str, fault: object) -> Answer:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.user = token.removeprefix("hf_") if token.removeprefix("hf_") in USERS else None
        if token and not self.user:
            raise error(401, "Invalid credentials in Authorization header")
        if isinstance(fault, int):
            raise error(fault, "The test asked for this error.")
        for method, pattern, handler in ROUTES:
            if re.fullmatch(method, self.command) and (match := re.fullmatch(pattern, path)):
                answer = handler(self, **{name: unquote(value) for name, value in match.groupdict("").items()})
                return answer if isinstance(answer, Answer) else Answer(200, answer, {})
        raise error(501, f"The Hub of the tests does not know {self.command} {path}")

    def _login(self) -> str:
        if not self.user:
            raise error(401, "Invalid username or password.")
        return self.user

    def _repo(self, repo_id: str, push: bool = False) -> Repo:
        """The repository, if the user may read it, or push to it."""
        repo, owns = self.hub.repos.get(repo_id), repo_id.split("/")[0] in USERS.get(self.user or "", ())
        # With https, the client takes any 401 for a missing repository; with http it needs the code.
        if repo is None or (repo.private and not owns) or (push and not self.user):
            raise error(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if push and not owns and self.query.get("create_pr") != "1":
            raise error(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repo

    def whoami(self) -> object:
        user, *orgs = USERS[self._login()]
        return {"name": user, "orgs": [{"name": name} for name in orgs], "auth": {"accessToken": {"role": "write"}}}

    def create_repo(self) -> object:
        asked, user = json.loads(self.body), self._login()
        namespace = asked["organization"] or user
        if namespace not in USERS[user]:
            raise error(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        repo_id = f"{namespace}/{asked['name']}"
        url = f"{self.hub.endpoint}/{repo_id}"
        if repo_id in self.hub.repos:
            raise error(409, "You already created this model repo", url=url)
        self.hub.repos[repo_id] = Repo(repo_id, user, asked.get("visibility") == "private")
        return {"url": url}

    def validate_yaml(self) -> object:
        """Not a parser: finds a card without metadata, and metadata without an end."""
        start, *lines = json.loads(self.body)["content"].splitlines() or [""]
        if start == "---" and "---" not in lines:
            raise error(400, "The metadata has no end", warnings=[])
        missing = [] if start == "---" else [{"message": "empty or missing yaml metadata in repo card"}]
        return {"errors": [], "warnings": missing}

    def preupload(self, repo_id: str, revision: str) -> object:
        present, files = self._repo(repo_id, push=True).find(revision).files, []
        for asked in json.loads(self.body)["files"]:
            path, binary = asked["path"], b"\0" in base64.b64decode(asked["sample"])
            mode = "lfs" if binary or path.endswith(LFS_SUFFIXES) or asked["size"] > 10 * 2**20 else "regular"
            oid = present[path].entry(path)["etag"] if path in present else None
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": files}

    def lfs_batch(self, repo_id: str) -> object:
        repo, objects = self._repo(repo_id), json.loads(self.body)["objects"]
        for asked in objects:
            upload = {"href": f"{self.hub.endpoint}/lfs/{repo_id}/{asked['oid']}"}
            verify = {"href": f"{self.hub.endpoint}/{repo_id}.git/info/lfs/objects/verify"}
            if asked["oid"] not in repo.lfs:
                asked["actions"] = {"upload": upload, "verify": verify}
        return {"transfer": "basic", "objects": objects}

    def lfs_upload(self, repo_id: str, oid: str) -> object:
        """The client sends no token here: the real Hub signs the address."""
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise error(400, "The content does not have the sha256 that was announced")
        self.hub.repos[repo_id].lfs[oid] = self.body
        return {}

    def lfs_verify(self, repo_id: str) -> object:
        asked = json.loads(self.body)
        if len(self._repo(repo_id).lfs.get(asked["oid"], b"")) != asked["size"]:
            raise error(422, "The object was not uploaded")
        return {}

    def commit(self, repo_id: str, revision: str) -> object:
        repo = self._repo(repo_id, push=True)
        header, *changes = (json.loads(line) for line in self.body.splitlines())
        expected, create_pr = header["value"].get("parentCommit"), self.query.get("create_pr") == "1"
        ref, parent, pull_request = repo.ref(revision), repo.find(revision), {}
        if create_pr:
            number = 1 + sum(name.startswith("refs/pr/") for name in repo.refs)
            ref, parent = f"refs/pr/{number}", repo.find(expected or revision)
            pull_request = {"pullRequestUrl": f"{self.hub.endpoint}/{repo_id}/discussions/{number}"}
        elif not ref or ref.startswith("refs/tags/"):
            raise error(400, "Commits go to a branch or a pull request")
        elif expected and not parent.oid.startswith(expected):
            raise error(412, "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for change in changes:
            self._apply(repo, files, change["key"], change["value"])
        texts = {"title": header["value"]["summary"], "message": header["value"]["description"]}
        oid = repo.commit(ref, parent, files, str(self.user), **texts)
        return {"commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{oid}", "commitOid": oid, **pull_request}

    def _apply(self, repo: Repo, files: dict[str, File], kind: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if kind == "file":
            files[path] = File(base64.b64decode(value["content"]), lfs=False)
        elif kind == "lfsFile" and value["oid"] in repo.lfs:
            files[path] = File(repo.lfs[value["oid"]], lfs=True)
        elif kind == "lfsFile":
            raise error(400, "LFS pointer pointed to a file that does not exist")
        elif kind == "deletedFile" and path in files:
            del files[path]
        else:
            raise error(404, "A file with this name doesn't exist", "EntryNotFound")

    def change_ref(self, repo_id: str, kind: str, name: str) -> object:
        """The path ends in the name of the branch or tag, but in the revision to mark when a tag is made."""
        repo, asked = self._repo(repo_id, push=True), json.loads(self.body or b"{}")
        name, target = (asked["tag"], name) if "tag" in asked else (name, asked.get("startingPoint", "main"))
        ref = f"refs/heads/{name}" if kind == "branch" else f"refs/tags/{name}"
        if self.command == "DELETE" and not repo.refs.pop(ref, None):
            raise error(404, f"Invalid rev id: {name}", "RevisionNotFound")
        if self.command == "POST" and ref in repo.refs:
            raise error(409, f"Reference already exists: {ref}")
        if self.command == "POST":
            repo.refs[ref] = repo.find(target).oid
        return {}

    def refs(self, repo_id: str) -> object:
        kinds: dict[str, list[dict[str, str]]] = {"heads": [], "tags": [], "pr": []}
        for ref, oid in self._repo(repo_id).refs.items():
            _, kind, name = ref.split("/", 2)
            kinds[kind].append({"name": name, "ref": ref, "targetCommit": oid})
        return {"branches": kinds["heads"], "tags": kinds["tags"], "converts": [], "pullRequests": kinds["pr"]}

    def commits(self, repo_id: str, revision: str) -> object:
        return self._repo(repo_id).find(revision).history

    def tree(self, repo_id: str, revision: str, folder: str) -> object:
        tree = self._repo(repo_id).find(revision).tree()
        if folder and tree.get(folder, {}).get("type") != "directory":
            raise error(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        start, recursive = f"{folder}/" if folder else "", self.query["recursive"] == "true"
        below = {path.removeprefix(start): entry for path, entry in tree.items() if path.startswith(start)}
        return [entry for path, entry in below.items() if recursive or "/" not in path]

    def paths_info(self, repo_id: str, revision: str) -> object:
        tree = self._repo(repo_id).find(revision).tree()
        return [tree[path] for path in parse_qs(self.body.decode())["paths"] if path in tree]

    def model_info(self, repo_id: str, revision: str) -> object:
        repo = self._repo(repo_id)
        commit = repo.find(revision or "main")
        files = [file.entry(path) for path, file in commit.files.items()]
        siblings = files if "blobs" in self.query else [{"rfilename": path} for path in commit.files]
        return {"id": repo_id, "sha": commit.oid, "private": repo.private, "siblings": siblings, "lastModified": DATE}

    def resolve(self, repo_id: str, revision: str, path: str) -> object:
        commit = self._repo(repo_id).find(revision)
        if path not in commit.files:
            raise error(404, "Entry not found", "EntryNotFound", commit.oid)
        file = commit.files[path]
        change, consistent = self.hub.tampered.get((commit.oid, path), (bytes, True))
        content = file.content if self.command == "HEAD" and not consistent else change(file.content)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.entry(path)["etag"]}"', "Accept-Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            headers["Content-Range"] = f"bytes {wanted[1]}-{len(content) - 1}/{len(content)}"
            return Answer(206, content[int(wanted[1]) :], headers)
        return Answer(200, content, headers)


ROUTES: list[tuple[str, str, Callable[..., object]]] = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create_repo),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", f"/api/models/{REPO}/preupload/{REVISION}", Handler.preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", f"/lfs/{REPO}/(?P<oid>[0-9a-f]+)", Handler.lfs_upload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/verify", Handler.lfs_verify),
    ("POST", f"/api/models/{REPO}/commit/{REVISION}", Handler.commit),
    ("POST|DELETE", f"/api/models/{REPO}/(?P<kind>branch|tag)/(?P<name>[^/]+)", Handler.change_ref),
    ("GET", f"/api/models/{REPO}/refs", Handler.refs),
    ("GET", f"/api/models/{REPO}/commits/{REVISION}", Handler.commits),
    ("GET", f"/api/models/{REPO}/tree/{REVISION}(?:/(?P<folder>.+))?", Handler.tree),
    ("POST", f"/api/models/{REPO}/paths-info/{REVISION}", Handler.paths_info),
    ("GET", f"/api/models/{REPO}(?:/revision/{REVISION})?", Handler.model_info),
    ("HEAD|GET", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
]
