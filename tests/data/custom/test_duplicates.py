"""Images that two datasets share."""

from mask2former.data.custom.duplicates import shared_images


def test_shared_images_are_found_by_content(tmp_path):
    content = {"train/a": b"one", "train/b": b"two", "train/c": b"four", "val/a": b"six", "val/z": b"two"}
    for name, what in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(what)
    train, val = ([str(path) for path in (tmp_path / split).iterdir()] for split in ("train", "val"))
    gone = str(tmp_path / "gone")
    assert shared_images([*train, gone], [*val, gone]) == [
        (str(tmp_path / "train/b"), str(tmp_path / "val/z"))
    ]
    assert shared_images(train, train) == [(path, path) for path in sorted(train)]
