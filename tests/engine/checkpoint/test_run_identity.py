"""A run is recognized by the name of the launch that started it."""

import pytest

from mask2former.engine.checkpoint.run_identity import claim_run, is_own_run


@pytest.mark.parametrize(
    ("noted", "now", "own"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("none", "none", False),  # torchrun's default names nothing
        (None, None, False),
        (None, "a", False),
    ],
)
def test_a_launch_recognizes_its_own_run(tmp_path, monkeypatch, noted, now, own):
    def be_in(job):
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        if job is not None:
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)

    be_in(now)
    assert not is_own_run(tmp_path)
    be_in(noted)
    claim_run(tmp_path)
    be_in(now)
    assert is_own_run(tmp_path) == own
