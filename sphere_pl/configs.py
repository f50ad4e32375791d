"""Configuration files by name: `--config method/memit` finds conf/method/memit.yaml wherever the package lies."""

from collections.abc import Sequence
from pathlib import Path

from sphere_pl.commands.usage import did_you_mean
from sphere_pl.errors import UserError

_FLAGS = ("--config", "-c")


def config_folder() -> Path:
    """The folder with the group files: inside an installed package, at the top of a checkout."""
    package = Path(__file__).parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def group_files() -> list[str]:
    """Names of all group files, such as `method/memit`."""
    folder = config_folder()
    return sorted(str(path.relative_to(folder).with_suffix("").as_posix()) for path in folder.glob("*/**/*.yaml"))


def find_config(name: str) -> str:
    """The path of a configuration file: the user's own file first, then a group file of that name.

    Raises:
        UserError: If there is neither.
    """
    if Path(name).expanduser().is_file():
        try:
            Path(name).expanduser().read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"--config={name} is not UTF-8 text ({error}). Write it again as UTF-8.") from error
        return name
    found = config_folder() / f"{name.removesuffix('.yaml')}.yaml"
    if not found.is_file():
        raise UserError(f"--config={name}: no such file and no such group.\n{_instead(name)}")
    return str(found)


def _instead(name: str) -> str:
    """What a name that is none may have meant, or else which names there are."""
    groups = group_files()
    meant = did_you_mean(name.removesuffix(".yaml"), groups)
    if meant:
        return meant
    folder = name.partition("/")[0]
    inside = [group for group in groups if group.startswith(f"{folder}/")]
    if inside:
        return f"There are {', '.join(inside)}."
    folders = dict.fromkeys(f"{group.partition('/')[0]}/" for group in groups)
    return f"Groups begin with {', '.join(folders)}; `--config method/` lists those of a method."


def resolve_group_files(args: Sequence[str]) -> list[str]:
    """Replace the names behind `--config` by paths.

    Example:
        >>> resolve_group_files(["fit", "--config", "method/memit"])[2].endswith("memit.yaml")
        True
    """
    resolved: list[str] = []
    expected = False
    for arg in args:
        if expected and arg.startswith("-"):
            raise UserError(f"--config needs a name, found {arg}: a YAML file, or a group such as method/memit.")
        flag, equals, name = arg.partition("=")
        if expected:
            resolved.append(find_config(arg))
        elif flag in _FLAGS and equals:
            resolved.append(f"{flag}={find_config(name)}")
        else:
            resolved.append(arg)
        expected = arg in _FLAGS
    return resolved
