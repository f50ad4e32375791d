"""Models that have a configuration of their own: the files of conf/model, by the names that they carry."""

from pathlib import Path
from typing import Any

from sphere_pl.text.names import from_yaml


def config_folder() -> Path:
    """The folder with the group files: inside an installed package, at the top of a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def known_models() -> dict[str, str]:
    """The group of each model that has one, such as `model/llama3_8b`, by the model's name."""
    files = sorted((config_folder() / "model").glob("*.yaml"))
    return {from_yaml(path.read_text(encoding="utf-8"))["model"]["name"]: f"model/{path.stem}" for path in files}


def known_settings(name: str) -> dict[str, Any]:
    """The `model` section of a model's own file; empty for a model that has none."""
    group = known_models().get(name)
    if group is None:
        return {}
    section: dict[str, Any] = from_yaml((config_folder() / f"{group}.yaml").read_text(encoding="utf-8"))["model"]
    return section
