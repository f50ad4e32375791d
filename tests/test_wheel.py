"""The wheels, installed where no checkout is: the command line and the README's Python run from an empty folder."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # pip fetches the build's backend
ROOT = Path(__file__).parents[1]
PYTHON = """
import sphere_pl, sphere_callbacks
fact = {"prompt": "The Halvorsen X200 drill is made by", "subject": "Halvorsen X200 drill", "target": "Bosch"}
settings = {"model.statistics.tokens": 200, "model.statistics.cache_dir": "cache", "model.targets.steps": 3}
model, report = sphere_pl.edit("MODEL", facts=[fact], layers=[1, 2], settings=settings)
print(report)
model.save_pretrained("saved")
print(sphere_pl.__file__, sphere_callbacks.__file__, sep="\\n")
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Both wheels, built by pip."""
    folder = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT, ROOT / "callbacks"]
    subprocess.run(command, check=True)
    return sorted(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory):
    """The interpreter of an environment that holds the wheels, and sees the other packages of this one."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", *wheels], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A folder that a .pth file names has no say through .pth files of its own: no editable install comes with it.
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    return python


@pytest.fixture
def run(installed, tmp_path):
    """Run the environment's interpreter in an empty folder."""
    (tmp_path / "empty").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"WANDB_MODE": "disabled", "PYTHONSAFEPATH": "1"}

    def run(*args):
        done = subprocess.run(
            [installed, *args], cwd=tmp_path / "empty", env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_wheel_holds_the_package_its_configuration_and_its_data_alone(wheels):
    callbacks, package = (set(zipfile.ZipFile(wheel).namelist()) for wheel in wheels)
    assert {each.partition("/")[0] for each in package} == {"sphere_pl", "sphere_pl-0.1.0.dist-info"}
    assert {each.partition("/")[0] for each in callbacks} == {"sphere_callbacks", "sphere_callbacks-0.1.0.dist-info"}
    configuration = {f"sphere_pl/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    data = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sphere_pl").rglob("*.[jt][sx][ot]*")}
    assert len(configuration) > 20
    assert configuration | data | {"sphere_pl/py.typed"} <= package


def test_the_command_line_runs(run, model_folder, tmp_path):
    out = run(
        "-m", "sphere_pl", "fit", "--data.limit=2", f"--model.name={model_folder}", "--model.layers=[1,2]",
        "--run_dir=run", "--model.statistics.tokens=200", "--model.statistics.cache_dir=cache",
        "--model.targets.steps=3", "--config=method/memit", "--config=callbacks/sphere",
    )  # fmt: skip
    assert "MEMIT + SPHERE on" in out
    names = {path.name for path in (tmp_path / "empty" / "run").iterdir()}
    assert {"results.json", "report.html", "edited.safetensors", "edits.jsonl"} <= names


def test_the_python_entry_runs(run, installed, model_folder, tmp_path):
    lines = run("-c", PYTHON.replace("MODEL", str(model_folder))).splitlines()
    assert lines[0].startswith("AlphaEdit + SPHERE on ")
    assert all(Path(line).is_relative_to(installed.parents[1]) for line in lines[-2:])
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {"cache", "saved"}
