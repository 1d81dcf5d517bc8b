"""Files for a repository, and short calls of the Hub's client."""

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download, upload_file
from huggingface_hub.errors import HfHubHTTPError

MASK = bytes(range(256)) * 8
SHA256 = hashlib.sha256(MASK).hexdigest()
FILES = {
    "README.md": b"---\nlicense: mit\n---\n# A ticket\n",
    "mask.safetensors": MASK,
    "mask_config.json": b"{}",
    "seed-0/mask.safetensors": MASK[::-1],
}


def push(repo: str, content: bytes, path: str = "notes.txt", **options):
    return upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=repo, **options)


def pull(repo: str, path: str, **options) -> bytes:
    return Path(hf_hub_download(repo, path, **options)).read_bytes()


def failing(status: int, text: str | None = None, error: type[HfHubHTTPError] = HfHubHTTPError):
    return pytest.raises(error, match=text, check=lambda error: error.response.status_code == status)
