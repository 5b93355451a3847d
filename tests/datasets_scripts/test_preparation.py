"""All preparation scripts: complete files only, none made twice, any number of processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest
from script_runs import DATASETS, contents, run
from synthetic_datasets import ade20k, ade20k_full, cityscapes, coco, coco_stuff
from tqdm import tqdm

SCRIPTS: dict[str, ModuleType] = {
    "prepare_ade20k": ade20k,
    "prepare_ade20k_full": ade20k_full,
    "prepare_cityscapes": cityscapes,
    "prepare_coco": coco,
    "prepare_coco_stuff": coco_stuff,
}
needs_proc = pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are looked up in /proc")
MANY = {"train": 10}  # more than one process takes at once


def draw_and_run(name: str, root: Path, workers: int = 1) -> dict[str, str]:
    """Return path -> content of the files that the script made."""
    SCRIPTS[name].draw(root, counts=MANY)
    before = contents(root)
    run(name, root, workers=workers)
    after = contents(root)
    assert before.items() <= after.items()
    return {path: after[path] for path in after.keys() - before.keys()}


@pytest.mark.parametrize("name", SCRIPTS)
def test_two_processes_make_the_same_files_as_one(tmp_path, name):
    made = draw_and_run(name, tmp_path / "one")
    assert len(made) >= MANY["train"] and not any("unfinished" in path for path in made)
    assert made == draw_and_run(name, tmp_path / "two", workers=2)


def states(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return the inode and the time of writing of each file and folder."""
    found = {path: path.stat() for path in folder.rglob("*")}
    return {path: (state.st_ino, state.st_mtime_ns) for path, state in found.items()}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_second_run_writes_nothing(tmp_path, name):
    draw_and_run(name, tmp_path)
    before = states(tmp_path)
    run(name, tmp_path)
    assert states(tmp_path) == before


def interrupted_run(name: str, root: Path, workers: int, signal_number: int, after: int) -> None:
    """Run a script that gets a signal when it is about to rename file number `after`."""
    tqdm.set_lock(threading.RLock())  # the default one is shared with forked processes: killed, they keep it
    script_process, replace, count = os.getpid(), os.replace, iter(range(10**6))

    def replace_or_stop(path: Path, target: Path) -> None:
        with open(root / "processes", "a") as file:
            print(os.getpid(), file=file)
        if next(count) == after:
            os.kill(script_process, signal_number)
            if workers > 1:
                time.sleep(20)
        replace(path, target)

    os.replace = replace_or_stop
    run(name, root, workers=workers)


def interrupt(name: str, root: Path, workers: int, signal_number: int, after: int) -> None:
    """Run a script in another process until it is interrupted and all its processes have ended."""
    arguments = (name, root, workers, signal_number, after)
    process = multiprocessing.get_context("fork").Process(target=interrupted_run, args=arguments)
    process.start()
    process.join(30)
    assert process.exitcode not in (0, None)
    for number in {int(line) for line in (root / "processes").read_text().split()}:
        deadline = time.monotonic() + 25
        while Path("/proc", str(number)).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert time.monotonic() < deadline, "a process outlived the script"
    (root / "processes").unlink()


@needs_proc
@pytest.mark.parametrize(
    ("name", "workers", "signal_number", "after"),
    [
        ("prepare_ade20k", 1, signal.SIGKILL, 0),
        ("prepare_ade20k", 1, signal.SIGKILL, 10),  # the JSON of instances
        ("prepare_ade20k", 1, signal.SIGKILL, 14),  # within the panoptic PNGs
        ("prepare_ade20k", 1, signal.SIGKILL, 21),  # the panoptic JSON
        ("prepare_ade20k", 2, signal.SIGKILL, 3),
        ("prepare_ade20k_full", 1, signal.SIGINT, 5),
        ("prepare_cityscapes", 1, signal.SIGKILL, 5),
        ("prepare_cityscapes", 1, signal.SIGINT, 15),
        ("prepare_coco", 1, signal.SIGINT, 3),
        ("prepare_coco_stuff", 2, signal.SIGKILL, 2),
    ],
)
def test_an_interrupted_run_leaves_complete_files_and_the_next_one_finishes(
    tmp_path, name, workers, signal_number, after
):
    expected = draw_and_run(name, tmp_path / "whole")
    root = tmp_path / "interrupted"
    SCRIPTS[name].draw(root, counts=MANY)
    before = contents(root)
    interrupt(name, root, workers, signal_number, after)
    found = {path: text for path, text in contents(root).items() if path not in before}
    in_place = {path: text for path, text in found.items() if ".unfinished" not in path}
    assert in_place.items() < expected.items()
    folders = {Path(path).parent for path in in_place if "labelTrainIds" not in path}
    complete = {path for path in expected if Path(path).parent in folders and not path.endswith(".json")}
    assert complete <= in_place.keys()  # of each folder all files, or none
    run(name, root)
    assert contents(root) == {**before, **expected}


def test_a_killed_worker_ends_the_script_with_a_message(tmp_path, capsys, monkeypatch):
    coco.draw(tmp_path, counts=MANY)
    monkeypatch.setattr(os, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(SystemExit, match="1"):
        run("prepare_coco", tmp_path, workers=2)
    assert "try --workers 1" in capsys.readouterr().err


@needs_proc
def test_files_of_an_interrupted_run_are_kept(tmp_path):
    coco.draw(tmp_path, counts=MANY)
    interrupt("prepare_coco", tmp_path, workers=1, signal_number=signal.SIGKILL, after=4)
    kept = {path.name: path.stat().st_ino for path in tmp_path.glob("coco/*.unfinished/0*.png")}
    assert len(kept) == 4
    run("prepare_coco", tmp_path)
    for name, inode in kept.items():
        assert (tmp_path / "coco" / "panoptic_semseg_train2017" / name).stat().st_ino == inode


@needs_proc
def test_the_json_is_deleted_before_its_folder_is_completed(tmp_path):
    expected = draw_and_run("prepare_cityscapes", tmp_path)
    folder = tmp_path / "cityscapes" / "gtFine" / "cityscapes_panoptic_train"
    next(folder.iterdir()).unlink()
    interrupt("prepare_cityscapes", tmp_path, workers=1, signal_number=signal.SIGKILL, after=4)
    assert not folder.exists() and not folder.with_suffix(".json").exists()
    run("prepare_cityscapes", tmp_path)
    assert expected.items() <= contents(tmp_path).items()


@pytest.mark.parametrize("workers", [1, 2])
def test_broken_input_is_an_error_and_the_next_run_finishes(tmp_path, capsys, workers):
    expected = draw_and_run("prepare_coco", tmp_path / "whole")
    root = tmp_path / "broken"
    coco.draw(root, counts=MANY)
    path = sorted((root / "coco" / "panoptic_train2017").iterdir())[6]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(SystemExit, match="1"):
        run("prepare_coco", root, workers=workers)
    assert f"{path}: not a readable image" in capsys.readouterr().err
    assert not (root / "coco" / "panoptic_semseg_train2017").exists()
    path.write_bytes(content)
    run("prepare_coco", root, workers=workers)
    made = {name: text for name, text in contents(root).items() if name in expected}
    assert made == expected and not list(root.rglob("*unfinished*"))


def test_an_incomplete_folder_of_another_tool_is_completed(tmp_path):
    expected = draw_and_run("prepare_coco", tmp_path)
    folder = tmp_path / "coco" / "panoptic_semseg_train2017"
    min(folder.iterdir()).unlink()
    kept = states(folder)
    run("prepare_coco", tmp_path)
    assert expected.items() <= contents(tmp_path).items()
    assert kept.items() <= states(folder).items()


@pytest.mark.parametrize("name", SCRIPTS)
def test_missing_data_is_an_error_with_the_folder_that_was_looked_for(tmp_path, capsys, name):
    with pytest.raises(SystemExit, match="1"):
        run(name, tmp_path)
    error = capsys.readouterr().err
    assert str(tmp_path) in error and "does not exist" in error and "datasets/README.md" in error


def test_an_empty_folder_is_an_error(tmp_path, capsys):
    (tmp_path / "ADEChallengeData2016" / "annotations" / "training").mkdir(parents=True)
    with pytest.raises(SystemExit, match="1"):
        run("prepare_ade20k", tmp_path)
    assert "training: there are no files *.png" in capsys.readouterr().err


def test_the_number_of_processes_must_be_positive(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("prepare_coco", tmp_path, workers=0)
    assert "--workers 0" in capsys.readouterr().err


def test_scripts_run_as_commands_with_the_root_of_the_environment(tmp_path):
    coco_stuff.draw(tmp_path, counts=MANY)
    expected = draw_and_run("prepare_coco_stuff", tmp_path / "here")
    command = [sys.executable, str(DATASETS / "prepare_coco_stuff.py"), "--workers", "2"]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path)}
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert expected.items() <= contents(tmp_path).items()
    assert "annotations_detectron2/train" in result.stderr and "10/10" in result.stderr
