"""`fit --help` fits a screen and says what the parser says."""

import re
import shlex

import pytest

from sphere_pl.commands import fit as cli
from sphere_pl.commands.short_help import EXAMPLES, SHOWN, WIDTH, argument
from sphere_pl.commands.wording import options


class Built(Exception):
    """Stops the command line when its parser is there."""


@pytest.fixture(scope="module")
def parser():
    built = []

    class OnlyParser(cli.EditingCLI):
        def parse_arguments(self, parser, args):
            built.append(parser)
            raise Built

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "EditingCLI", OnlyParser)
        with pytest.raises(Built):
            cli.run(["fit"])
    return built[0]._actions[-1].choices["fit"]


def test_it_fits_a_screen(parser):
    lines = parser.format_help().splitlines()
    assert len(lines) <= 42
    assert max(map(len, lines)) <= WIDTH
    assert len(parser.whole_help().splitlines()) > 500


def test_every_argument_shown_exists_with_its_help_and_default(parser):
    text = " ".join(parser.format_help().split())
    for name in [name for names in SHOWN.values() for name in names]:
        action = argument(parser, name)
        assert f"--{name}" in text
        assert re.split(r"[.:;,]", action.help)[0].replace("``", "") in text
    assert "(default: AlphaEdit)" in text
    assert "(default: [2, 3, 4, 5, 6])" in text


def test_every_example_names_arguments_that_exist(parser):
    known = options(parser)
    for arguments, _ in EXAMPLES:
        assert [each for each in shlex.split(arguments) if each.startswith("--") and each not in known] == []
