"""The parsers of all commands: errors in three lines, and a help that may have two lengths."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import jsonargparse

from sphere_pl.commands.wording import explain
from sphere_pl.errors import UserError
from sphere_pl.text.usage import program


class Explained(argparse.ArgumentParser):
    """A parser whose errors are `UserError`s of at most three lines.

    Mixed into jsonargparse's parsers too: those that it makes for itself, with `exit_on_error=False`, are left alone.
    """

    also: Sequence[str] = ()  # arguments that the command takes beside the parser's own
    more_help: str = ""  # said after the help's command

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what was wrong, what may have been meant, and where the help is.

        Raises:
            UserError: Always, unless the parser was made not to end the program.
        """
        if not self.exit_on_error:
            raise argparse.ArgumentError(None, message) from ex
        acting = self._acting()
        lines = [*explain(message, acting, self._given()), f"Help: {acting.help_command()}{acting.more_help}"]
        raise UserError("\n".join(line for line in lines if line)) from ex

    def help_command(self) -> str:
        """The command that shows this parser's help, as the user would type it."""
        return f"{self.prog.replace(' [options]', '')} --help"

    def _given(self) -> Sequence[str]:
        """What is parsed; jsonargparse keeps it under this name."""
        given: Sequence[str] = getattr(self, "args", ())
        return given

    def _acting(self) -> "Explained":
        """The parser of the command that was given, if this one only chooses between commands."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                chosen = next((arg for arg in self._given() if arg in (action.choices or {})), None)
                return action.choices[chosen] if chosen else self
        return self


class Parser(Explained):
    """The parser of a command whose arguments are few.

    Args:
        command: Name of the command.
        **kwargs: Those of `argparse.ArgumentParser`.
    """

    def __init__(self, command: str, **kwargs: Any) -> None:
        super().__init__(prog=f"{program()} {command}", allow_abbrev=False, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; an error looks at what was given."""
        self.args = list(args or ())
        return super().parse_known_args(args, namespace)


@contextmanager
def users_mistakes() -> Iterator[None]:
    """What a setting's own check refuses, in a constructor for example, is the user's mistake.

    Raises:
        UserError: In the place of a `ValueError` or `TypeError`, with the same words; one that is a `UserError` already
            keeps its kind and its exit status.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


class AllHelp(argparse.Action):
    """An option that shows a help that is too long for a screen, and ends the program."""

    def __init__(self, option_strings: Sequence[str], dest: str, text: Callable[[], str], **kwargs: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **kwargs)
        self.text = text

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        """Show it."""
        sys.stdout.write(self.text())
        parser.exit()


class SettingsParser(Explained, jsonargparse.ArgumentParser):
    """jsonargparse's parser; errors as in `Explained`."""
