"""What the Hub of the tests stores: repositories, their commits and files; and the answers that it gives."""

import hashlib
import json
from pathlib import PurePosixPath
from typing import Any, NamedTuple

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".npy", ".npz")
DATE = "2026-01-01T00:00:00.000Z"


class Answer(Exception):
    """An answer, returned or raised; what is not bytes is sent as JSON, and empty headers are not sent."""

    def __init__(self, status: int, body: object, headers: dict[str, str]):
        self.status, self.headers = status, {name: value for name, value in headers.items() if value}
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


def error(status: int, text: str, code: str = "", commit: str = "", **body: object) -> Answer:
    headers = {"X-Error-Message": text, "X-Error-Code": code, "X-Repo-Commit": commit}
    return Answer(status, {"error": text, "errors": [{"message": text}], **body}, headers)


class File(NamedTuple):
    """A file of a commit."""

    content: bytes
    lfs: bool

    def entry(self, path: str) -> dict[str, Any]:
        """The file in a listing, with the names of all listings."""
        size, blob, large = len(self.content), self.content, None
        if self.lfs:
            sha256 = hashlib.sha256(blob).hexdigest()
            blob = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
            large = {"oid": sha256, "sha256": sha256, "size": size, "pointerSize": len(blob)}
        oid = hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()
        names = {"path": path, "rfilename": path, "oid": oid, "blobId": oid}
        return {"type": "file", "size": size, "lfs": large, "etag": large["oid"] if large else oid, **names}


class Commit(NamedTuple):
    """A commit: its id, what a listing shows of it and the commits before it, and all files."""

    oid: str
    history: list[dict[str, Any]]
    files: dict[str, File]

    def tree(self) -> dict[str, dict[str, Any]]:
        """The entries of all files and folders, by path."""
        entries = {path: file.entry(path) for path, file in self.files.items()}
        for folder in {str(parent) for path in self.files for parent in list(PurePosixPath(path).parents)[:-1]}:
            entries[folder] = {"type": "directory", "path": folder, "oid": self.oid, "size": 0}
        return dict(sorted(entries.items()))


class Repo:
    """A model repository: commits by id, and their ids by full ref (refs/heads/main, refs/tags/v1, refs/pr/1)."""

    def __init__(self, repo_id: str, author: str, private: bool):
        self.repo_id, self.private = repo_id, private
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, str] = {}
        self.lfs: dict[str, bytes] = {}
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        files = {".gitattributes": File(attributes.encode(), lfs=False)}
        self.commit("refs/heads/main", None, files, author, title="initial commit", message="")

    def commit(self, ref: str, parent: Commit | None, files: dict[str, File], author: str, **texts: str) -> str:
        """Add a commit and let the ref point to it."""
        oid = hashlib.sha1(f"{self.repo_id} {len(self.commits)} {texts}".encode()).hexdigest()
        shown = {"id": oid, "date": DATE, "authors": [{"user": author}], **texts}
        self.commits[oid] = Commit(oid, [shown, *(parent.history if parent else [])], files)
        self.refs[ref] = oid
        return oid

    def ref(self, revision: str) -> str:
        """The full ref of a branch, tag or pull request; empty if there is none."""
        names = (f"refs/heads/{revision}", f"refs/tags/{revision}", revision)
        return next((name for name in names if name in self.refs), "")

    def find(self, revision: str) -> Commit:
        """The commit that a branch, tag, pull request or commit id (7 digits or more) names."""
        start = self.refs.get(self.ref(revision), revision)
        for oid, commit in self.commits.items():
            if len(start) >= 7 and oid.startswith(start):
                return commit
        raise error(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The contents of the files of a revision, by path."""
        return {path: file.content for path, file in self.find(revision).files.items()}
