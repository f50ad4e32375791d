"""Signals are taken over for a time and given back."""

import signal

import pytest

from sphere_pl.process.interrupts import Interrupts, RunInterrupted

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no hangup")


@pytest.mark.usefixtures("signals_heeded")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_raised_at_once_and_handlers_are_given_back(signum):
    before = signal.getsignal(signum)
    with pytest.raises(RunInterrupted) as found, Interrupts():
        signal.raise_signal(signum)
    assert found.value.signum == signum
    assert signal.getsignal(signum) is before


def test_what_nohup_switched_off_stays_off():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_patient_one_notes_the_first_signal_and_raises_the_second(capsys):
    with Interrupts() as interrupts:
        interrupts.patient = True
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.asked == signal.SIGTERM
        with pytest.raises(RunInterrupted):
            signal.raise_signal(signal.SIGINT)
    assert "A second signal drops" in capsys.readouterr().err
