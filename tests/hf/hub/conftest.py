"""A repository to pull from."""

import pytest
from hub_client import FILES
from huggingface_hub import create_repo, upload_folder


@pytest.fixture
def repo(hub, tmp_path) -> str:
    """A repository with FILES, pushed in one commit."""
    for path, content in FILES.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    repo_id = create_repo("ticket").repo_id
    upload_folder(repo_id=repo_id, folder_path=tmp_path, commit_message="The mask")
    return repo_id
