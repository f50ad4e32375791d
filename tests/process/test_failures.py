"""What used memory or disks up is recognised in the words of every library, and nothing else is."""

import errno

import pytest
import torch
from safetensors import SafetensorError

from sphere_pl.errors import UserError
from sphere_pl.process.failures import (
    DiskFullError,
    MemoryShortageError,
    disk_full,
    doing,
    explained,
    interrupted,
    out_of_memory,
    stage,
)
from sphere_pl.process.interrupts import RunInterrupted

MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] . DefaultCPUAllocator: not enough memory: you tried to allocate"),
    RuntimeError("could not create a primitive"),
    RuntimeError("could not create a memory object"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("bad allocation"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnSsyevd`"),
    RuntimeError("unable to mmap 1024 bytes from file <w.bin>: Cannot allocate memory (12)"),
    RuntimeError("can't start new thread"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    SafetensorError("Error while deserializing header: Cannot allocate memory (os error 12)"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
]
DISK = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    OSError(errno.EFBIG, "File too large"),
    SafetensorError("Error while serializing: IoError(Os { code: 28, message: No space left on device })"),
    SafetensorError("I/O error: No space left on device (os error 28)"),
]
NEITHER = [
    UserError("The file 'out of memory, no space left on device.json' is no JSON."),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    OSError(errno.ENOENT, "No such file or directory", "out of memory.txt"),
    KeyError("x"),
]


@pytest.mark.parametrize("error", MEMORY, ids=lambda error: str(error)[:40])
def test_every_kind_of_memory_shortage_is_recognised(error):
    assert out_of_memory(error) is error
    assert disk_full(error) is None


@pytest.mark.parametrize("error", DISK, ids=lambda error: str(error)[:40])
def test_every_kind_of_full_disk_is_recognised(error):
    assert disk_full(error) is error
    assert out_of_memory(error) is None


@pytest.mark.parametrize("error", NEITHER, ids=lambda error: str(error)[:40])
def test_other_errors_pass_as_they_are(error):
    with pytest.raises(type(error)) as found, explained(str):
        raise error
    assert found.value is error


def raised_from(cause, error):
    try:
        try:
            raise cause
        except Exception as first:
            raise error from first
    except Exception as last:
        return last


def test_an_error_that_hides_a_shortage_is_seen_through():
    cause = MemoryError()
    assert out_of_memory(raised_from(cause, UserError("The model could not be loaded."))) is cause


def test_the_innermost_stage_counts_also_that_of_a_cause():
    @doing("loading")
    def load():
        try:
            with doing("outer"), doing("reading the header"):
                raise OSError(errno.ENOMEM, "no")
        except OSError as error:
            raise UserError("It could not be loaded.") from error

    with pytest.raises(UserError) as found:
        load()
    assert stage(found.value) == "reading the header"
    assert stage(KeyError()) == ""


def test_a_shortage_is_one_message_with_stage_amounts_and_advice():
    outer, inner = (lambda: "Buy more.", lambda: "It needs 2 GB."), (lambda: "Go on.", lambda: "It needs 1 GB.")
    with pytest.raises(MemoryShortageError) as found, explained(*outer), explained(*inner), doing("solving"):
        raise RuntimeError("could not create a primitive\nmore lines")
    assert str(found.value) == "Out of memory while solving: could not create a primitive.\nIt needs 1 GB.\nGo on."
    assert found.value.status == 3


def test_a_full_disk_keeps_the_status_of_a_user_error():
    with pytest.raises(DiskFullError) as found, explained(lambda: "Go on."), doing("writing x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(found.value).startswith("The disk is full while writing x: No space left on device.")
    assert found.value.status == 2


def test_frames_that_fill_the_memory_are_let_go():
    class Large:
        pass

    alive = []

    def fill():
        import weakref

        large = Large()
        alive.append(weakref.ref(large))
        raise MemoryError

    with (
        pytest.raises(MemoryShortageError),
        explained(lambda: str(alive[0]() is None), lambda: str(alive[0]() is None)),
    ):
        fill()
    assert alive[0]() is None


def test_an_interruption_takes_the_first_advice_along():
    with pytest.raises(RunInterrupted) as found, explained(lambda: "Outer."), explained(lambda: "Inner."), doing("x"):
        raise RunInterrupted(15)
    assert interrupted(found.value) == "Interrupted while x. Inner."
    assert interrupted(KeyboardInterrupt()) == "Interrupted."
