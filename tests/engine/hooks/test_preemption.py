"""SIGTERM between, in and after training steps."""

import signal
from types import SimpleNamespace

import pytest

from mask2former.engine.hooks.preemption import PreemptedError, PreemptionHook, sigterm_deferred
from mask2former.engine.hooks.standard import CheckpointHook


@pytest.fixture(autouse=True)
def cleared_signal():
    """Forget the signal after the test: `sigterm_received` holds until the next `sigterm_deferred` block."""
    yield
    with sigterm_deferred():
        pass


@pytest.mark.parametrize(
    ("event", "done", "saved"), [("before_train", 3, 0), ("after_step", 3, 1), ("after_train", 9, 0)]
)
def test_sigterm_stops_the_run_and_saves_after_a_step(event, done, saved):
    calls = []
    hook = PreemptionHook(SimpleNamespace(save=calls.append))
    trainer = SimpleNamespace(done=done, max_iter=9)
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_deferred():
        getattr(hook, event)(trainer)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(PreemptedError):
            getattr(hook, event)(trainer)
    assert calls == [trainer] * saved
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_last_step_is_followed_by_the_final_checkpoint_and_evaluation():
    hook = PreemptionHook(SimpleNamespace())
    with sigterm_deferred():
        signal.raise_signal(signal.SIGTERM)
        hook.after_step(SimpleNamespace(done=9, max_iter=9))


def test_a_step_is_saved_once(monkeypatch):
    written = []
    monkeypatch.setattr(CheckpointHook, "_write", lambda hook, trainer, name: written.append(name))
    hook = CheckpointHook(None, period=2, extra={})
    for done in (1, 2, 3):
        hook.after_step(SimpleNamespace(done=done))
    hook.save(SimpleNamespace(done=3))
    hook.save(SimpleNamespace(done=3))
    assert written == ["model_0000001.pth", "model_0000002.pth"]
