"""Local paths and URLs, read and written through a flaky storage."""

import io
import json
import os
import pickle
import re
import sys
from email.message import Message
from pathlib import Path
from unittest.mock import Mock
from urllib.error import HTTPError

import numpy as np
import pytest
import torch
from flaky_storage import FlakyStorage
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mask2former.data.custom.label_classes import existing
from mask2former.data.datasets.files import load_json
from mask2former.data.datasets.semantic import files_by_name
from mask2former.data.errors import DatasetError
from mask2former.evaluation.common import json_files
from mask2former.utils import storage
from mask2former.utils.image_io import read_image
from mask2former.utils.label_maps import read_label_map
from mask2former.utils.storage import (
    RemotePath,
    WebFiles,
    alike,
    contents_of,
    files_below,
    is_file,
    is_remote,
    names_in,
    only_alike,
    path_manager,
    retry,
    to_file,
    to_path,
    upload,
)
from mask2former.weights.load import read_checkpoint
from mask2former.weights.read import WeightsError


def test_the_contents_of_a_folder_are_counted_by_suffix(tmp_path):
    assert contents_of(tmp_path) == "it holds no file"
    (tmp_path / "below").mkdir()
    for name in ["b.txt", "below/1.HEIC", "below/2.heic", "README", ".hidden.txt"]:
        (tmp_path / name).touch()
    assert contents_of(tmp_path) == "it holds 2 .heic, 1 without a suffix, 1 .txt"
    for number in range(5):
        (tmp_path / f"x.{number}{'y' * 100}").touch()
    assert contents_of(tmp_path).endswith(f"1 .1{'y' * 18}, 1 .2{'y' * 18} and 3 other kinds")


def test_links_to_a_folder_above_are_not_followed(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "x.txt").touch()
    for number in range(4):  # 4^40 paths
        (tmp_path / "below" / f"link{number}").symlink_to(tmp_path)
    (tmp_path / "other").symlink_to(tmp_path / "below")
    found = sorted(path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path, {".txt"}))
    assert found == ["below/x.txt", "other/x.txt"]


@pytest.fixture
def steady(tmp_path, monkeypatch):
    """Folder behind `flaky://` without failures, and no waits between retries."""
    monkeypatch.setenv("FLAKY_STORAGE", str(tmp_path / "store"))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "WAITS", (0.0,) * len(storage.WAITS))
    (tmp_path / "store").mkdir()
    path_manager.register_handler(FlakyStorage([False]))
    return tmp_path / "store"


@pytest.fixture
def store(steady):
    """Folder behind `flaky://` with failures."""
    handler = FlakyStorage()
    path_manager.register_handler(handler)
    yield steady
    assert handler.failures  # else nothing was tested


NAMES = st.text(st.sampled_from("abc._-"), min_size=1).filter(lambda name: name not in (".", ".."))


@given(st.lists(NAMES, min_size=1, max_size=4))
def test_a_url_has_the_parts_of_a_path(names):
    url = to_path("s3://" + "/".join(names))
    path = Path("/s3", *names)
    assert str(url) == "s3://" + "/".join(names)
    assert (url.name, url.stem, url.suffix) == (path.name, path.stem, path.suffix)
    assert str(url / "x") == f"{url}/x" and (url / "x").parent == url
    assert str((url / "x.png").relative_to(url)) == "x.png"
    assert pickle.loads(pickle.dumps(url)) == url == to_path(Path(str(url)))


@pytest.mark.parametrize("name", ["a/b", "/a", "C:/a", "~/a", "", ".", "a:b"])
def test_local_paths_are_not_remote(name):
    assert not is_remote(name)
    assert to_path(name) == Path(name).expanduser() and not isinstance(to_path(name), RemotePath)


def test_a_scheme_without_handler_is_an_error():
    with pytest.raises(ValueError, match=r"^nowhere://x/y\.json: no handler for nowhere:// is registered;"):
        load_json("nowhere://x/y.json")


def test_a_missing_file_is_named_and_not_retried(steady, monkeypatch):
    monkeypatch.setattr(storage, "WAITS", (1000.0,))
    with pytest.raises(DatasetError, match=r"flaky://x\.json does not exist"):
        load_json("flaky://x.json")
    with pytest.raises(FileNotFoundError):
        to_path("flaky://x.json").read_text()
    with pytest.raises(WeightsError, match=r"^flaky://x\.pth: cannot be downloaded"):
        read_checkpoint("flaky://x.pth")


def test_a_persistent_failure_is_raised(steady, caplog):
    path_manager.register_handler(FlakyStorage([True]))
    (steady / "x.json").write_text("{}")
    with pytest.raises(OSError, match="the storage is busy"):
        to_path("flaky://x.json").read_text()
    assert caplog.text.count("retrying") == len(storage.WAITS)


@pytest.mark.parametrize(
    ("error", "expected", "calls"),
    [
        (TypeError("a mistake"), TypeError, 1),
        (HTTPError("http://x", 404, "gone", Message(), None), OSError, 1),
        (Exception("the endpoint is away"), OSError, 2),  # clients have their own error classes
    ],
)
def test_only_transient_errors_are_retried(monkeypatch, error, expected, calls):
    monkeypatch.setattr(storage, "WAITS", (0.0,))
    action = Mock(side_effect=error)
    with pytest.raises(expected, match=r"a mistake|gone|the endpoint is away"):
        retry(action)
    assert action.call_count == calls


def test_interrupted_reads_are_retried(store):
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    labels = image[..., 0]
    Image.fromarray(image).save(store / "image.png")
    Image.fromarray(labels).save(store / "labels.png")
    (store / "x.json").write_text(json.dumps({"a": "é" * 1000}), encoding="utf-8")
    weights = torch.arange(1000.0)
    torch.save({"model": {"a": weights}}, store / "x.pth")
    for _ in range(4):
        np.testing.assert_array_equal(read_image("flaky://image.png"), image)
        np.testing.assert_array_equal(read_label_map("flaky://labels.png"), labels)
        assert load_json("flaky://x.json", "a") == {"a": "é" * 1000}
        assert torch.equal(read_checkpoint("flaky://x.pth").model["a"], weights)


def test_folders_are_searched_to_any_depth(store):
    for name in ("b/c/2.png", "a.PNG", "b/1.png", "b/x.txt", "b/.hidden.png", ".trash/3.png"):
        (store / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (store / "root" / name).touch()
    root, names = "flaky://root", files_by_name("flaky://root", {".png"})
    assert names == {"a": f"{root}/a.PNG", "b/1": f"{root}/b/1.png", "b/c/2": f"{root}/b/c/2.png"}
    assert [*files_by_name(store / "root", {".png"})] == [*names]
    assert {path.name for path in files_below("flaky://root", {".txt"})} == {"x.txt"}


def test_interrupted_uploads_are_retried(store, tmp_path):
    for number in range(8):
        (tmp_path / "file").write_bytes(bytes([number]) * 1000)
        upload(tmp_path / "file", to_path("flaky://new/folder/file"))
        assert (store / "new/folder/file").read_bytes() == bytes([number]) * 1000


def test_a_handler_that_returns_false_has_failed(steady, tmp_path, monkeypatch):
    monkeypatch.setattr(FlakyStorage, "_copy_from_local", lambda *_, **__: False)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"flaky://folder/file: its handler could not copy"):
        upload(tmp_path / "file", to_path("flaky://folder/file"))


def test_the_example_script_in_the_docs_works(steady, monkeypatch, capsys):
    # The S3 handler, which needs boto3, is replaced
    page = (Path(__file__).parents[2] / "docs/storage.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    handler = FlakyStorage([False])
    monkeypatch.setattr("iopath.common.s3.S3PathHandler", lambda profile: handler)
    monkeypatch.setattr(sys, "argv", ["train_on_s3.py", "--help"])
    with pytest.raises(SystemExit) as end:
        exec(script, {"__name__": "__main__"})
    assert end.value.code == 0 and "--config-file" in capsys.readouterr().out
    (steady / "x.txt").write_text("read by the handler of the page")
    assert to_path("flaky://x.txt").read_text() == "read by the handler of the page"


def test_a_handler_may_only_support_open(monkeypatch):
    monkeypatch.setattr(WebFiles, "_open", lambda self, path, mode, **_: io.BytesIO(b'{"a": 1}'))
    assert load_json("http://host/x.json") == {"a": 1}
    assert not to_path("http://host/x").is_dir()


READERS = (read_image, read_label_map, load_json, existing, read_checkpoint)


@pytest.mark.parametrize("read", [*READERS, lambda path: json_files.load_json(path, dict)])
def test_a_named_pipe_is_refused_instead_of_waited_for(tmp_path, read):
    pipe = tmp_path / "x.png"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match="not a regular file but a pipe, socket or device") as error:
        read(str(pipe))
    assert str(error.value).count(str(pipe)) == 1


def test_a_device_is_refused():
    with pytest.raises(ValueError, match=r"/dev/zero: cannot be read .*not a regular file"):
        read_image("/dev/zero")


@pytest.mark.parametrize("name", ["a😀É.png", "A😀e\u0301.png", "a\udcf0\udc9f\udc98\udc80\udcc3\udc89.png"])
def test_names_are_alike_in_any_case_form_of_accents_and_locale(name):
    assert alike(name) == alike("a😀é.PNG") != alike("b😀é.png")
    assert alike("\ud800") == "\ud800"


def test_only_the_one_name_that_is_alike_is_meant():
    wanted = ["A.txt", "b.txt", "c.txt", "D.txt", "d.TXT", "e.txt"]
    present = ["a.TXT", "b.txt", "C.txt", "c.TXT", "d.txt"]
    assert only_alike(wanted, present) == {"A.txt": "a.TXT", "b.txt": "b.txt"}
    assert only_alike(wanted, []) == only_alike([], present) == {}


def test_a_name_longer_than_the_file_system_allows_is_no_file(tmp_path):
    assert not is_file(tmp_path / ("a" * 5000)) and not names_in(tmp_path / ("a" * 5000))


def test_a_file_url_is_a_local_path(tmp_path):
    file = tmp_path / "a b.txt"
    file.write_text("x")
    for url in (file.as_uri(), Path(file.as_uri()), f"file://{file}"):
        assert to_path(url) == file and not is_remote(url)
        assert to_file(url).read_text() == "x"
