"""`fit --help` fits a screen and says what the parser says."""

import re
import shlex

from sphere_pl.commands import fit_help
from sphere_pl.commands.short_help import EXAMPLES, SHOWN, WIDTH, argument
from sphere_pl.commands.wording import options
from sphere_pl.text.usage import program


def test_it_fits_a_screen(fit_parser):
    lines = fit_parser.format_help().splitlines()
    assert len(lines) <= 42
    assert max(map(len, lines)) <= WIDTH
    assert len(fit_parser.whole_help().splitlines()) > 500


def test_what_is_shown_without_the_parser_is_what_it_writes(fit_parser):
    # Written again by: open("sphere_pl/commands/fit_help.txt", "w").write(parser's text, PROGRAM for the program)
    assert fit_help().replace(program(), "PROGRAM") == fit_parser.format_help().replace(program(), "PROGRAM")


def test_every_argument_shown_exists_with_its_help_and_default(fit_parser):
    text = " ".join(fit_parser.format_help().split())
    for name in [name for names in SHOWN.values() for name in names]:
        action = argument(fit_parser, name)
        assert f"--{name}" in text
        assert re.split(r"[.:;,]", action.help)[0].replace("``", "") in text
    assert "(default: AlphaEdit)" in text
    assert "(default: 10)" in text


def test_every_example_names_arguments_that_exist(fit_parser):
    known = options(fit_parser)
    for arguments, _ in EXAMPLES:
        assert [each for each in shlex.split(arguments) if each.startswith("--") and each not in known] == []
