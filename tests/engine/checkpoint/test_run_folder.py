"""Checkpoints of a run folder, on a real disk: complete or not there, and found again."""

import pytest
import torch

from mask2former.engine.checkpoint.run_folder import FINAL, POINTER, RunFolder
from mask2former.utils.atomic_files import atomic_write


def content(step):
    state = {"optimizer": {"state": {}}, "window": {}, "scaler": {}, "seed": 0}
    return {"model": {"weight": torch.full((3,), float(step))}, **state, "iteration": step}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def test_the_last_saved_is_loaded_and_named_by_the_pointer(folder):
    for step in (4, 9):
        folder.save(f"model_{step:07d}.pth", content(step))
    assert (folder.path / POINTER).read_text() == "model_0000009.pth"
    assert folder.load_last()["iteration"] == 9
    assert torch.load(folder.path / "model_0000004.pth", weights_only=True)["iteration"] == 4


def test_an_empty_or_missing_folder_has_none(tmp_path):
    assert RunFolder(tmp_path).load_last() is None
    assert RunFolder(tmp_path / "nowhere").load_last() is None


def damage_by_truncation(path):
    path.write_bytes(path.read_bytes()[:-200])


def damage_by_zeros(path):
    path.write_bytes(b"\0" * path.stat().st_size)


def damage_by_emptiness(path):
    path.write_bytes(b"")


def damage_by_foreign_content(path):
    torch.save([1, 2, 3], path)


class Code:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code in a checkpoint was run')",))


def damage_by_code(path):
    torch.save({"model": Code(), "optimizer": {}, "iteration": 1}, path)


@pytest.mark.parametrize(
    "damage",
    [damage_by_truncation, damage_by_zeros, damage_by_emptiness, damage_by_foreign_content, damage_by_code],
)
def test_a_damaged_last_file_falls_back_to_the_one_before(folder, damage, caplog):
    folder.save("model_0000004.pth", content(4))
    damage(folder.save("model_0000009.pth", content(9)))
    assert folder.load_last()["iteration"] == 4
    assert "model_0000009.pth" in caplog.text and "the one before" in caplog.text


def test_only_damaged_files_are_an_error(folder):
    damage_by_truncation(folder.save("model_0000009.pth", content(9)))
    with pytest.raises(ValueError, match=r"no checkpoint in .*: model_0000009\.pth"):
        folder.load_last()


@pytest.mark.parametrize("pointer", ["model_0000099.pth", "", None])
def test_without_a_true_pointer_the_latest_step_is_taken(folder, pointer):
    for step in (9, 4, 19):
        folder.save(f"model_{step:07d}.pth", content(step))
    (folder.path / POINTER).unlink()
    if pointer is not None:
        (folder.path / POINTER).write_text(pointer)
    assert folder.load_last()["iteration"] == 19
    folder.save(FINAL, content(24))
    (folder.path / POINTER).unlink()
    assert folder.load_last()["iteration"] == 24
    folder.save(FINAL, content(14))  # of a run that was then continued
    (folder.path / POINTER).unlink()
    assert folder.load_last()["iteration"] == 19


def test_a_write_that_fails_leaves_the_old_file_and_the_pointer(folder):
    folder.save(FINAL, content(4))
    with pytest.raises(Exception, match=r"(?i)pickle"):
        folder.save(FINAL, {**content(9), "not plain": lambda: None})
    assert folder.load_last()["iteration"] == 4
    assert sorted(path.name for path in folder.path.iterdir()) == [POINTER, FINAL]


def test_until_the_end_of_the_block_the_old_content_stands(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_earlier_run_is_set_aside_whole(folder):
    for _ in range(2):
        folder.save("model_0000004.pth", content(4))
        (folder.path / "metrics.json").write_text("{}\n")
        (folder.path / "log.txt").write_text("stays\n")
        (folder.path / "inference/panoptic").mkdir(parents=True)
        folder.set_earlier_run_aside()
    assert sorted(p.name for p in folder.path.iterdir()) == ["earlier_run_1", "earlier_run_2", "log.txt"]
    moved = sorted(p.name for p in (folder.path / "earlier_run_2").iterdir())
    assert moved == ["inference", "last_checkpoint", "metrics.json", "model_0000004.pth"]
    (folder.path / "inference").mkdir()  # of an evaluation alone
    folder.set_earlier_run_aside()
    assert not (folder.path / "earlier_run_3").exists()
