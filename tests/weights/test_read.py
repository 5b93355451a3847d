"""Reading of real files and from a real web server, and the errors."""

import gzip
import pickle
import socket
import struct
import zipfile
from collections import Counter

import pytest
import torch
from pickled_call import PickledCall
from safetensors.torch import save_file
from torch import nn
from web_server import web

from mask2former.utils import storage
from mask2former.utils.storage import web_cache, web_url
from mask2former.weights import model_zoo as zoo
from mask2former.weights.read import WeightsError, local_file, read_checkpoint

__all__ = ["web"]

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}
ARRAYS = {name: tensor.numpy() for name, tensor in TENSORS.items()}


def is_sample(checkpoint):
    same = [torch.equal(checkpoint.model[name], tensor) for name, tensor in TENSORS.items()]
    return all(same) and checkpoint.model.keys() == TENSORS.keys()


def write_zoo_pickle(path):
    content = {"model": ARRAYS, "__author__": "torchvision", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content))


WRITERS = {
    "torch": lambda path: torch.save({"model": TENSORS}, path),
    "old torch": lambda path: torch.save({"model": TENSORS}, path, _use_new_zipfile_serialization=False),
    "bare tensors": lambda path: torch.save({**TENSORS, "epoch": 3}, path),
    "state_dict": lambda path: torch.save({"state_dict": TENSORS, "epoch": 3}, path),
    "zoo pickle": write_zoo_pickle,
    "converted pickle": lambda path: path.write_bytes(pickle.dumps({"model": TENSORS, "__author__": "x"})),
    "oldest pickle": lambda path: path.write_bytes(pickle.dumps({"model": ARRAYS}, protocol=0)),
    "safetensors": lambda path: save_file(TENSORS, path),
}


@pytest.mark.parametrize("name", ["x.pth", "x.pkl", "x.safetensors", "x"])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_the_format_is_known_by_the_content(tmp_path, write, name):
    write(tmp_path / name)
    assert is_sample(read_checkpoint(tmp_path / name))


def test_a_checkpoint_of_ours_holds_config_and_metadata(tmp_path):
    saved = {"model": TENSORS, "config": "MODEL: {}", "metadata": {"thing_classes": ["cat"]}, "iteration": 7}
    torch.save(saved, tmp_path / "x.pth")
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert checkpoint.config == "MODEL: {}"
    assert checkpoint.metadata == {"thing_classes": ["cat"]}
    assert checkpoint.extra == {"iteration": 7}
    torch.save({**TENSORS, "epoch": 3}, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth").extra == {"epoch": 3}
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"config": "MODEL: {}"})
    assert read_checkpoint(tmp_path / "x.safetensors").config == "MODEL: {}"


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_an_error(tmp_path, write, share):
    path = tmp_path / "x.pth"
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(WeightsError, match=f"{path}: .*(truncated|damaged|no checkpoint)"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"<!DOCTYPE html><html>Not found</html>", "web page"),
        (b"\n<html lang='en'>Sign in</html>", "web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "Git LFS pointer"),
        (gzip.compress(b"x" * 100, mtime=0), "compressed"),
        (b"MODEL:\n  WEIGHTS: x\n", "no checkpoint"),
        (b"These are no weights.", "no checkpoint"),
        (b"config of a run.", "no checkpoint|code"),
        (b"\xff\xd8\xff\xe0" + bytes(200), "no checkpoint"),
        (bytes(1000), "no checkpoint"),
        (b"PK\x03\x04" + bytes(1000), "no checkpoint"),  # the archive of another program
    ],
)
@pytest.mark.parametrize("name", ["x.pth", "x.pkl", "x.safetensors"])
def test_other_files_are_an_error_with_the_reason(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=reason) as error:
        read_checkpoint(tmp_path / name)
    assert error.value.file == str(tmp_path / name)


@pytest.mark.parametrize(
    "save",
    [
        lambda value, path: torch.save(value, path),
        lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
        lambda value, path: path.write_bytes(pickle.dumps(value)),
        lambda value, path: path.write_bytes(pickle.dumps(value, protocol=0)),
    ],
)
@pytest.mark.parametrize("name", ["x.pth", "x.pkl", "x.safetensors"])
def test_code_is_refused_and_not_run(tmp_path, save, name):
    marker = tmp_path / "executed"
    save({"model": {**TENSORS, "b": PickledCall(exec, f"open({str(marker)!r}, 'w')")}}, tmp_path / name)
    with pytest.raises(WeightsError, match=r"holds code or objects.*exec.*nothing was executed"):
        read_checkpoint(tmp_path / name)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_program_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "x.pt"))
    with pytest.raises(WeightsError, match="TorchScript"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"epoch": 3, "note": "x"}, "holds no weights"),
        ({"model": {"a": 1}}, "holds no weights"),
        ([1, 2], "holds no weights"),
        ({}, "holds no weights"),
        ({"k" * 5000: 1}, r"holds no weights; its keys are: kkk.*characters"),
        ({**TENSORS, "odd.weight": torch.ones(2).to_sparse()}, r"sparse or has no values: odd\.weight"),
        ({**TENSORS, "odd.weight": torch.empty(2, device="meta")}, r"sparse or has no values: odd\.weight"),
        (nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear.*state dict"),
    ],
)
def test_a_file_of_torch_without_usable_weights_is_an_error(tmp_path, content, reason):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=reason) as error:
        read_checkpoint(tmp_path / "x.pth")
    assert len(str(error.value)) < 550


def test_a_missing_file_is_an_error_with_similar_names(tmp_path):
    torch.save({"model": TENSORS}, tmp_path / "model_final.pth")
    with pytest.raises(WeightsError, match=r"no such file; in .* there is model_final\.pth"):
        read_checkpoint(tmp_path / "model_fina.pth")
    with pytest.raises(WeightsError, match="no such file"):
        read_checkpoint(tmp_path / "nowhere" / "model.pth")
    with pytest.raises(WeightsError, match="is a folder"):
        read_checkpoint(tmp_path)


def test_a_published_name_is_an_error_with_the_url_of_its_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"no such file; of the published .* are https://\S+\.pkl$"):
        read_checkpoint("coco-panoptic-r50")


def test_a_missing_backbone_is_an_error_with_its_origin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"https://download\.pytorch\.org/models/resnet101-\w+\.pth"):
        read_checkpoint("R-101.pkl")


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save({"model": TENSORS}, tmp_path / "x.pth")
    assert is_sample(read_checkpoint("~/x.pth"))


def test_a_bad_download_is_deleted_and_a_good_one_is_made_once(web):
    folder, root, requests = web
    (folder / "x.pkl").write_text("<html>busy, come back later</html>")
    with pytest.raises(WeightsError, match=r"x\.pkl: is a web page.*the download was deleted"):
        read_checkpoint(root + "x.pkl")
    write_zoo_pickle(folder / "x.pkl")
    requests.clear()
    for _ in range(2):
        assert is_sample(read_checkpoint(root + "x.pkl"))
    assert requests == {"/x.pkl": 1}


def test_a_missing_url_and_one_that_leaves_the_cache_are_errors(web):
    _, root, requests = web
    with pytest.raises(WeightsError, match=r"must not contain '\.\.'"):
        read_checkpoint(f"{root}../../x.pth")
    assert not requests
    with pytest.raises(WeightsError, match=r"cannot be downloaded \(.*404.*other means"):
        read_checkpoint(root + "nothing.pth")


@pytest.mark.parametrize("host", ["127.0.0.1:1", "no-such-host.invalid"])
def test_an_unreachable_host_is_an_error_at_once(tmp_path, monkeypatch, host):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(storage, "WAITS", (1000.0,))
    with pytest.raises(WeightsError) as error:
        read_checkpoint(f"http://{host}/x.pth")
    assert f"cannot be downloaded ({host} cannot be reached: " in str(error.value)
    assert "type MODEL.WEIGHTS x.pth, or copy it to" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_host_that_does_not_answer_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(storage, "CONNECT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(WeightsError, match=f"{host} cannot be reached: timed out"):
            read_checkpoint(f"http://{host}/x.pth")


def test_the_license_of_published_weights_is_logged_once(web, monkeypatch, caplog):
    folder, root, _ = web
    write_zoo_pickle(folder / "x.pkl")
    write_zoo_pickle(folder / "other.pkl")
    read_checkpoint(root + "other.pkl")
    assert "CC BY-NC" not in caplog.text
    monkeypatch.setitem(zoo.table(), "root", root)
    for _ in range(2):
        read_checkpoint(root + "x.pkl")
    assert caplog.text.count("CC BY-NC 4.0") == 1


def test_a_missing_file_that_configs_of_videos_start_from_has_its_url_in_the_error():
    url = zoo.find_model("coco-instance-r50").weights
    with pytest.raises(
        WeightsError, match=f"no such file; .*'coco-instance-r50': set MODEL.WEIGHTS to {url}$"
    ):
        read_checkpoint("model_final_3c8ec9.pkl")


def test_each_host_has_a_cache_and_detectron2s_is_that_of_detectron2(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    assert web_cache("https://a.org/m/model_final.pth") != web_cache("https://b.org/m/model_final.pth")
    path = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
    url = "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/torchvision/R-50.pkl"
    assert web_url(path) == url
    cached = tmp_path / "detectron2" / "ImageNetPretrained" / "torchvision" / "R-50.pkl"
    cached.parent.mkdir(parents=True)
    write_zoo_pickle(cached)
    assert local_file(path) == cached
    assert is_sample(read_checkpoint(path))


def test_an_archive_that_expands_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"N0" * 10_000_000)
        archive.writestr("a/version", "3")
    with pytest.raises(WeightsError, match=r"is compressed, from 20 to 0\.0 MB"):
        read_checkpoint(tmp_path / "x.pth")


def write_archive(path, pickled):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/version", "3")


def write_legacy(path, pickled):
    """Write a file as torch did before 1.6, whose value is `pickled`."""
    heads = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {})]
    path.write_bytes(b"".join(heads) + pickled + pickle.dumps([], 2))


NESTED = b"\x80\x02)q\x00" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(40))
NESTED_LIST = b"\x80\x02]q\x00" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(40))
LONG = struct.pack("<I", 1_000_000) + b"a" * 1_000_000
HOSTILE = {
    "key": NESTED + b"}h\x28Ns.",
    "keys": NESTED + b"}(h\x28Nu.",
    "ordered dict": NESTED + b"ccollections\nOrderedDict\n]h\x28N\x86a\x85R.",
    "set": NESTED + b"c__builtin__\nset\n]h\x28a\x85R.",
    "counter": NESTED + b"ccollections\nCounter\n]h\x28a\x85R.",
    "storage": NESTED + b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nh\x28X\x03\x00\x00\x00cpuK\x01tQ.",
    "numbers": NESTED_LIST + b"ctorch._utils\n_rebuild_sparse_tensor\nh\x28h\x28\x86R.",
    "called list": NESTED_LIST + b"h\x28)R.",
    "bytes of a size": b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "slow encoding": b"\x80\x02c_codecs\nencode\nX" + LONG + b"X\x08\x00\x00\x00punycode\x86R.",
    "repeated": b"\x80\x02c_codecs\nencode\nq\x00X%bX\x06\x00\x00\x00latin1\x86q\x01(%bt."
    % (LONG, b"h\x00h\x01R" * 100_000),
}


@pytest.mark.parametrize("pickled", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("write", [write_archive, write_legacy])
def test_a_small_file_that_would_keep_torch_busy_is_refused_at_once(tmp_path, write, pickled):
    write(tmp_path / "x.pth", pickled)
    with pytest.raises(WeightsError, match=r"is truncated, damaged or no checkpoint|holds code or objects"):
        read_checkpoint(tmp_path / "x.pth")


def test_the_pickle_that_torch_reads_is_checked_beside_an_archive_and_in_capitals(tmp_path):
    write_legacy(tmp_path / "x.pth", HOSTILE["key"])
    with zipfile.ZipFile(tmp_path / "x.pth", "a") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2))
    with pytest.raises(WeightsError, match="too many nested parts"):
        read_checkpoint(tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("a/DATA.PKL", HOSTILE["key"])
    with pytest.raises(WeightsError, match="too many nested parts"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("is_zip", [True, False])
def test_what_trainers_save_beside_the_weights_is_read(tmp_path, is_zip):
    extra = {"milestones": Counter([3, 3, 8]), "seen": {1, 2}, "raw": b"ab", "blob": bytearray(b"cd")}
    extra |= {"size": torch.Size([2, 3]), "type": torch.bfloat16, "device": torch.device("cpu"), "z": 1 + 2j}
    extra["parameter"] = nn.Parameter(torch.ones(2))
    saved = {"model": TENSORS, "steps": {(0, "a"): 1}, **extra}
    torch.save(saved, tmp_path / "x.pth", _use_new_zipfile_serialization=is_zip)
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert is_sample(checkpoint)
    assert torch.equal(checkpoint.extra.pop("parameter"), extra.pop("parameter"))
    assert checkpoint.extra == {"steps": {(0, "a"): 1}, **extra}


@pytest.mark.parametrize("is_zip", [True, False])
def test_tensors_that_repeat_a_value_without_end_are_refused(tmp_path, is_zip):
    repeated = {"model": {"a": torch.zeros(1).expand(10**11)}}
    torch.save(repeated, tmp_path / "x.pth", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(WeightsError, match=r"repeat their values, 400000 MB in a file of 0\.0 MB"):
        read_checkpoint(tmp_path / "x.pth")
    torch.save({"model": dict.fromkeys("abc", torch.ones(4_000_000))}, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth").model.keys() == {"a", "b", "c"}  # tied weights


def test_no_message_advises_unsafe_loading(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02\xff")
        archive.writestr("a/version", "3")
    with pytest.raises(WeightsError, match="is truncated, damaged or no checkpoint") as error:
        read_checkpoint(tmp_path / "x.pth")
    assert "weights" not in str(error.value).lower().replace("holds no weights", "")


def test_a_run_folder_is_an_error_that_names_its_last_checkpoint(tmp_path):
    with pytest.raises(WeightsError, match=r"is a folder, not a file of weights$"):
        read_checkpoint(tmp_path)
    (tmp_path / "model_final.pth").touch()
    with pytest.raises(WeightsError, match=r"is a folder, not a file of weights; type .*/model_final\.pth$"):
        read_checkpoint(tmp_path)


def doubled_tuple_as_key():
    """Return a pickle of `[t0, t1, ...], {t39: 1}`, where each tuple holds the one before it twice."""
    tuples = b"".join(b"h%ch%c\x86q%c" % (i - 1, i - 1, i) for i in range(1, 40))
    return b"\x80\x02](K\x01K\x02\x86q\x00" + tuples + b"e}h\x27K\x01s\x86."


def test_a_key_whose_hash_never_ends_is_refused_in_an_archive(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "sound.pth")
    with zipfile.ZipFile(tmp_path / "sound.pth") as old, zipfile.ZipFile(tmp_path / "x.pth", "w") as new:
        for member in old.infolist():
            is_pickle = member.filename.endswith("data.pkl")
            new.writestr(member.filename, doubled_tuple_as_key() if is_pickle else old.read(member))
    with pytest.raises(WeightsError, match="a key of too many nested parts"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_key_whose_hash_never_ends_is_refused_in_old_files(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    head = (tmp_path / "x.pth").read_bytes().split(b"\x80\x02")[1:4]  # magic number, protocol, platform
    (tmp_path / "x.pth").write_bytes(b"".join(b"\x80\x02" + part for part in head) + doubled_tuple_as_key())
    with pytest.raises(WeightsError, match="a key of too many nested parts"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_size_that_the_file_does_not_have_allocates_nothing(tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"abc.")
    with pytest.raises(WeightsError, match="truncated"):
        read_checkpoint(tmp_path / "x.pkl")
