"""What a run refuses before anything is loaded or edited, each with what to do instead."""

import math
from collections.abc import Sequence

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import SingleDeviceStrategy

from sphere_callbacks.functional import computes_in_double
from sphere_pl.data.datamodule import EditDataModule
from sphere_pl.data.request import EditRequest
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.errors import UserError
from sphere_pl.methods.base import Method
from sphere_pl.model.loading import DeviceMap


def check_arguments(method: object, contexts: int, context_length: int, name: object) -> None:
    """Refuse what no editor can be made of.

    Raises:
        UserError: If the method is none, or a number is out of range.
    """
    if not isinstance(method, Method):
        raise UserError(f"`method={method!r}` is no editing method. Subclass `sphere_pl.methods.Method`.")
    if contexts < 0 or context_length < 2:
        raise UserError(f"`contexts={contexts}` must be at least 0 and `context_length={context_length}` at least 2.")
    if not isinstance(name, str):
        raise UserError(
            f"`name=` takes a model's name, found {type(name).__name__}. A model in memory is edited by "
            "`sphere_pl.edit(model, tokenizer, facts)`."
        )


def check_run(
    trainer: "L.Trainer",
    method: Method,
    layers: Sequence[int],
    targets: TargetSettings,
    device_map: DeviceMap,
) -> None:
    """Refuse a strategy, arithmetic, a device or a method that cannot do what is asked, before anything is loaded.

    Raises:
        MisconfigurationException: Saying what does not go together.
    """
    check_strategy(device_map, trainer)
    check_arithmetic(trainer)
    check_precision(trainer.strategy.root_device)
    check_method(method, layers, targets)
    datamodule = getattr(trainer, "datamodule", None)
    if isinstance(datamodule, EditDataModule):
        check_batch_size(method, datamodule.batch_size)


def check_method(method: Method, layers: Sequence[int], targets: TargetSettings) -> None:
    """Refuse layers or target settings that the method cannot use.

    Raises:
        MisconfigurationException: If the method edits fewer layers, or has no target values to anchor.
    """
    most = method.max_layers
    if most is not None and len(layers) > most:
        raise MisconfigurationException(
            f"{method.name} edits at most {most} layer, but `layers={layers}` names {len(layers)}. "
            f"Choose one, for example --model.layers=[{layers[-1]}]."
        )
    if targets.anchor and not method.needs_targets:
        raise MisconfigurationException(
            f"`targets.anchor=true` rescales target values, but {method.name} has none. Leave it at false, or choose a "
            "method that solves for target values, such as AlphaEdit."
        )


def check_subjects(method: Method, requests: Sequence[EditRequest]) -> None:
    """Refuse requests without a subject where the method edits at one.

    Raises:
        UserError: Naming the first of them, and methods that need none.
    """
    bare = [request for request in requests if not request.subject]
    if bare and method.needs_targets:
        raise UserError(
            f"{bare[0].source or f'case {bare[0].case_id}'} has no subject ({len(bare)} of {len(requests)} edits): "
            f"{method.name} edits at the subject's last token. Add a field `subject` that names what the prompt is "
            "about, or choose a method that needs none: --config method/ft, method/locft_bf or method/ultraedit."
        )


def check_batch_size(method: Method, size: int) -> None:
    """Refuse batches of more edits than the method makes at a time.

    Raises:
        MisconfigurationException: If `size` is more.
    """
    most = method.max_batch_size
    if most is not None and size > most:
        raise MisconfigurationException(
            f"{method.name} makes at most {most} edit at a time, but a batch has {size}. Set --data.batch_size={most}."
        )


def check_retry(retry: float) -> None:
    """Refuse what is neither a number of edits nor a share of them."""
    if not (0 <= retry < 1 or (1 <= retry < math.inf and retry == int(retry))):
        raise UserError(
            f"--retry={retry} must be at least 0: how many failed edits to edit again, as a whole number, or which "
            "share of all edits, below 1."
        )


def check_strategy(device_map: DeviceMap, trainer: L.Trainer) -> None:
    """Refuse to spread the model over devices under a strategy that would put it on others.

    Raises:
        MisconfigurationException: If it is.
    """
    if device_map is not None and not isinstance(trainer.strategy, SingleDeviceStrategy):
        raise MisconfigurationException(
            f"`device_map={device_map!r}` spreads one model over the devices of one process, but the trainer's "
            f"strategy is {type(trainer.strategy).__name__} in {trainer.world_size} processes, each with a whole "
            "model. Set --trainer.devices=1 and leave out --trainer.strategy, or leave out --model.device_map."
        )


def check_launch(strategy: object) -> None:
    """Refuse, by its name, a strategy that copies this process, its threads and locks among it.

    Raises:
        MisconfigurationException: If it is `ddp_spawn`, `ddp_fork`, `ddp_notebook` or one of their variants.
    """
    if isinstance(strategy, str) and strategy.lower().startswith(("ddp_spawn", "ddp_fork", "ddp_notebook")):
        raise MisconfigurationException(
            f"`Trainer(strategy={strategy!r})` copies a process that already holds a model and a run folder. Several "
            "processes need --trainer.strategy=ddp, which starts each of them again."
        )


def check_precision(device: torch.device) -> None:
    """Refuse a device that editing cannot sum on.

    Raises:
        MisconfigurationException: If it has no double precision.
    """
    if not computes_in_double(device):
        raise MisconfigurationException(
            f"The trainer runs on {device}, which has no double precision: second moments, solves and scores need it. "
            'Set --trainer.accelerator=cpu, or `Trainer(accelerator="cpu")`.'
        )


def check_arithmetic(trainer: L.Trainer) -> None:
    """Refuse trainer settings that would edit wrongly.

    Raises:
        MisconfigurationException: If updates would be rounded or summed over batches.
    """
    if trainer.precision != "32-true":
        raise MisconfigurationException(
            f"`Trainer(precision={trainer.precision!r})` would round or skip updates. Leave it at 32-true and "
            "choose the language model's type with --model.dtype."
        )
    if trainer.max_epochs != 1:
        raise MisconfigurationException(
            f"`Trainer(max_epochs={trainer.max_epochs})` would make every edit again in each epoch and count it twice. "
            "Leave it at 1."
        )
    if trainer.accumulate_grad_batches != 1:
        raise MisconfigurationException("Edits cannot be accumulated: leave trainer.accumulate_grad_batches at 1.")
