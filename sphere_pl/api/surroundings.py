"""What a call borrows from the program around it and gives back: random states, signals, loggers, a model's modes."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from sphere_pl.commands import ignore_remarks
from sphere_pl.errors import UserError
from sphere_pl.process.devices import accelerator
from sphere_pl.process.failures import explained
from sphere_pl.process.interrupts import Interrupts, RunInterrupted
from sphere_pl.storage.random_states import random_states, restore_random_states

_SEEDING = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")  # set by Lightning's `seed_everything`
_TALKATIVE = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")


@contextmanager
def as_python_does() -> Iterator[None]:
    """End as a program expects: every mistake is a `UserError`, Ctrl-C a `KeyboardInterrupt`.

    Raises:
        UserError: For what Lightning takes for a mistake too, and for memory or disk that did not suffice.
        KeyboardInterrupt: If the user stopped it.
        SystemExit: If the system did.
    """
    try:
        with Interrupts(), explained(lambda: "A model that was given is as it was before the call."):
            yield
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except RunInterrupted as error:
        if error.signum == signal.SIGINT:
            raise KeyboardInterrupt from error
        raise SystemExit(128 + error.signum) from error


@contextmanager
def left_as_they_were() -> Iterator[None]:
    """Compute with gradients and without autocast; put back what Lightning sets for a whole process."""
    states, arguments = random_states(), sys.argv[:]
    environment = {name: os.environ.get(name) for name in _SEEDING}
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    try:
        sys.argv[1:] = []  # Lightning's command line warns of arguments that are not its own
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings(), ExitStack() as stack:
            ignore_remarks()
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for kind in {"cpu", getattr(accelerator(), "type", "cpu")}:
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        sys.argv[:] = arguments
        restore_random_states(states)


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Give a model back in its training modes and with its `requires_grad` flags."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
