from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from splice import models
from splice.models import PublishedModel, PublishedPart, find_model, pull
from wire.errors import SpliceError

CONTENT = b"GGUF of a kind" * 100
PIECES = (CONTENT[:500], CONTENT[500:])


class Index:
    """A package index with one archive for each piece; keeps what it was asked for."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces
        self.asked: list[str] = []

    def __call__(self, part: PublishedPart, folder: Path) -> Path:
        self.asked.append(part.package)
        archive = folder / f"{part.package}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(archive, "w") as package:
            package.writestr(part.member, self.pieces[int(part.package[-1])])
        return archive


def sound() -> Index:
    return Index(*PIECES)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PublishedModel:
    hashes = [hashlib.sha256(piece).hexdigest() for piece in PIECES]
    parts = (PublishedPart(f"tiny-{i}", "1.0", f"tiny/{i}", sha256) for i, sha256 in enumerate(hashes))
    model = PublishedModel(
        name="tiny", title="Tiny", file_name="tiny.gguf", parts=tuple(parts), size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(), licence="none",
    )  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(models, "PUBLISHED", {"tiny": model})
    return model


def silent(_: str) -> None:
    return None


def test_a_model_is_fetched_once_and_put_together_from_its_parts() -> None:
    index = sound()
    first, second = pull("tiny", silent, index), pull("tiny", silent, index)
    assert first == second == find_model("tiny").path
    assert first.read_bytes() == CONTENT
    assert index.asked == ["tiny-0", "tiny-1"]
    assert list(models.models_dir().iterdir()) == [first]


def test_a_damaged_copy_is_noticed_and_fetched_again() -> None:
    index = sound()
    path = pull("tiny", silent, index)
    path.write_bytes(CONTENT[:-1] + b"?")
    assert pull("tiny", silent, index).read_bytes() == CONTENT
    assert len(index.asked) == 4


def test_a_replaced_package_is_refused_and_leaves_nothing() -> None:
    with pytest.raises(SpliceError, match=r"tiny/1 of tiny-1.*SHA-256"):
        pull("tiny", silent, Index(PIECES[0], b"something else"))
    assert list(models.models_dir().iterdir()) == []


def test_a_cut_off_copy_is_not_served() -> None:
    pull("tiny", silent, sound()).write_bytes(CONTENT[:5])
    with pytest.raises(SpliceError, match="splice pull tiny"):
        find_model("tiny")


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(SpliceError, match="did you mean tiny"):
        pull("tinny", silent, sound())


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpliceError, match=r"config\.json"):
        find_model(str(tmp_path))
