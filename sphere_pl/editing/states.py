"""What a method keeps of each matrix, held on one device and lent to another a matrix at a time.

Basis and memory of earlier keys have d_in x d_in numbers for each edited matrix, and one matrix is worked on at a time.
Held in main memory, they leave the accelerator to the model: while one matrix is solved, the next one's state is on its
way, on a stream of its own and out of pinned memory, so that the copy takes no time from the solve.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sphere_pl.errors import UserError
from sphere_pl.methods.base import State
from sphere_pl.process.devices import accelerator


def device_of(name: str | None) -> torch.device | None:
    """The device of that name.

    Raises:
        UserError: If there is no such device.
    """
    try:
        return None if name is None else torch.device(name)
    except RuntimeError as error:
        raise UserError(f"`statistics_device={name!r}` is no device. Give cpu, or leave it out.") from error


class _Coming(NamedTuple):
    """A state on its way: where it is held, where it is wanted, and what says that it has arrived."""

    held: State
    lent: State
    arrived: torch.Event | None


class Offload:
    """Lends the states of matrices to the device that solves for them.

    Args:
        home: Where states are held; they stay where they are made if None.
    """

    def __init__(self, home: torch.device | None) -> None:
        self.home = home
        self._next: _Coming | None = None
        self._streams: dict[torch.device, torch.Stream] = {}

    def keep(self, state: State) -> State:
        """The state as it is held."""
        return state if self.home is None else {name: move(tensor, self.home) for name, tensor in state.items()}

    def take_back(self, changed: State, lent: State, held: State) -> State:
        """The state as it is held, from what a method has made of the lent one; what it left alone is not copied."""
        return {
            name: held[name] if tensor is lent.get(name) else self.keep({name: tensor})[name]
            for name, tensor in changed.items()
        }

    @contextmanager
    def lend(self, states: Sequence[State], index: int, devices: Sequence[torch.device]) -> Iterator[State]:
        """The state number `index` on its device, one of `devices`; the one after it sets out meanwhile."""
        if self.home is None:
            yield states[index]
            return
        coming, self._next = self._next, None
        if coming is None or coming.held is not states[index]:
            coming = self._send(states[index], devices[index])
        lent = self._receive(coming, devices[index])
        if index + 1 < len(states):
            self._next = self._send(states[index + 1], devices[index + 1])
        try:
            yield lent
        except BaseException:  # the matrices after this one will not be asked for now
            if self._next is not None:
                self._receive(self._next, devices[index + 1])
            self._next = None
            raise

    def _send(self, state: State, device: torch.device) -> _Coming:
        if not _overlaps(self.home, device):
            return _Coming(state, {name: move(tensor, device) for name, tensor in state.items()}, None)
        # Memory comes from the stream that will read it; the copy waits until that stream is done with its last use.
        lent = {name: torch.empty_like(tensor, device=device) for name, tensor in state.items()}
        stream = self._streams.setdefault(device, torch.Stream(device=device))
        stream.wait_stream(torch.accelerator.current_stream(device))
        with stream:
            for name, tensor in state.items():
                lent[name].copy_(tensor, non_blocking=True)
        return _Coming(state, lent, stream.record_event())

    def _receive(self, coming: _Coming, device: torch.device) -> State:
        if coming.arrived is not None:
            torch.accelerator.current_stream(device).wait_event(coming.arrived)
        return coming.lent


def _overlaps(home: torch.device | None, device: torch.device) -> bool:
    """Whether a device can fetch from main memory beside its work."""
    found = accelerator()
    return home is not None and home.type == "cpu" and found is not None and device.type == found.type


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; pinned if it leaves an accelerator, which can then fetch it beside its work."""
    if tensor.device.type == device.type:
        return tensor.to(device)
    # As it lies in memory: a product with a matrix that lies otherwise is rounded in another way.
    return torch.empty_like(tensor, device=device, pin_memory=tensor.is_cuda).copy_(tensor)


class MethodStates(Sequence[State]):
    """What a method knows of each matrix, in the order in which they are edited.

    Args:
        states: One for each matrix, as `Offload.keep` gives them back.
        weights: The matrices; each state is worked with where its matrix is.
        offload: Where states are held meanwhile; where they were made if None.
    """

    def __init__(self, states: Sequence[State], weights: Sequence[Tensor], offload: Offload | None = None) -> None:
        self._states, self._weights, self._offload = list(states), weights, offload or Offload(None)

    def __getitem__(self, layer: Any) -> Any:
        return self._states[layer]

    def __len__(self) -> int:
        return len(self._states)

    @contextmanager
    def lent(self, layer: int) -> Iterator[State]:
        """The state of matrix number `layer`, where the matrix is."""
        with self._offload.lend(self._states, layer, [weight.device for weight in self._weights]) as state:
            yield state

    def update(self, layer: int, change: Callable[[State], State]) -> None:
        """Replace the state of one matrix by what `change` makes of it."""
        with self.lent(layer) as state:
            changed = change(state)
            if changed is not state:
                self._states[layer] = self._offload.take_back(changed, state, self._states[layer])

    def saved(self, names: Collection[str]) -> list[State]:
        """The tensors of these names, which change while editing and belong in a checkpoint."""
        return [{name: state[name] for name in names if name in state} for state in self._states]

    def restore(self, saved: Sequence[State]) -> None:
        """Take tensors back from a checkpoint."""
        self._states = [
            {**state, **self._offload.keep({name: tensor.to(weight.device) for name, tensor in tensors.items()})}
            for state, tensors, weight in zip(self._states, saved, self._weights, strict=True)
        ]
