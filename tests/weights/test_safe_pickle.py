"""The restricted unpickler reads everything that weights consist of and refuses everything else."""

import contextlib
import io
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pickled_call import PickledCall

from mask2former.weights.safe_pickle import ALLOWED, PickleError, RefusedPickleError, load_plain_pickle


def load(data):
    return load_plain_pickle(io.BytesIO(data))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "i1", "i4", ">i8", "u1", "b1"])
def test_arrays_of_numbers_are_read(protocol, dtype):
    arrays = {
        "plain": np.arange(6).reshape(2, 3).astype(dtype),
        "column by column": np.asfortranarray(np.arange(6).reshape(2, 3).astype(dtype)),
        "single": np.array(1, dtype=dtype),
        "none": np.zeros((0, 4), dtype=dtype),
    }
    loaded = load(pickle.dumps(arrays, protocol))
    for name, array in arrays.items():
        assert loaded[name].shape == array.shape
        assert np.array_equal(loaded[name], array)


@pytest.mark.parametrize("protocol", range(6))
def test_numbers_strings_and_containers_are_read(protocol):
    value = {
        "a": [1, 2.5, None, True, "é", b"\xff\x00", bytearray(b"xy")],
        "b": ((1, 2), {3, 4}, frozenset({5}), 2**80),
        "c": OrderedDict(x=np.float64(1.5), y=np.int64(-3), z=np.bool_(True)),
    }
    assert load(pickle.dumps(value, protocol)) == value


def test_a_pickle_of_python_2_is_read():
    header = b"\x80\x02}U\x05model}U\x01w"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    dtype = b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    data = np.array([1.0, -2.5], "<f4").tobytes()
    state = b"(K\x01K\x02\x85" + dtype + b"\x89U" + bytes([len(data)]) + data + b"tb"
    loaded = load(header + array + state + b"ss.")
    assert loaded["model"]["w"].tolist() == [1.0, -2.5]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_torch_tensors_are_read(protocol):
    base = torch.arange(12.0)
    tensors = OrderedDict(
        plain=torch.randn(2, 3),
        half=torch.randn(4).half(),
        bfloat=torch.randn(4).bfloat16(),
        index=torch.arange(5),
        number=torch.tensor(7),
        nothing=torch.zeros(0, 3),
        transposed=torch.randn(2, 3).T,
        slice=base[2:8:2],
        parameter=torch.nn.Parameter(torch.randn(2)),
    )
    tensors._metadata = OrderedDict(version=1)
    loaded = load(pickle.dumps({"model": tensors, "__author__": "third_party"}, protocol))
    assert loaded["__author__"] == "third_party"
    assert loaded["model"].keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded["model"][name].dtype == tensor.dtype
        assert torch.equal(loaded["model"][name], tensor)


def test_a_deeply_shared_value_is_not_expanded():
    value = [np.ones(3)]
    for _ in range(60):
        value = [value, value]
    loaded = load(pickle.dumps(value))
    assert loaded[0] is loaded[1]


REFUSED = (  # separated by spaces
    "os.system posix.system nt.system subprocess.Popen builtins.eval __builtin__.eval builtins.exec "
    "builtins.getattr builtins.__import__ torch.hub.load torch.load torch.jit.load numpy.load "
    "numpy.f2py.compile webbrowser.open pickle.loads functools.partial operator.attrgetter "
    "mask2former.weights.safe_pickle.load_plain_pickle argparse.Namespace"
)


@pytest.mark.parametrize("name", REFUSED.split())
def test_every_other_name_is_refused(name):
    module, _, function = name.rpartition(".")
    call = f"\x80\x02c{module}\n{function}\nU\x01x\x85R."  # of the function with "x"
    with pytest.raises(RefusedPickleError, match=f"asks for {name}"):
        load(call.encode("latin1"))


def test_a_call_is_not_made(tmp_path):
    for depth in range(3):
        marker = tmp_path / f"executed{depth}"
        hostile = PickledCall(exec, f"open({str(marker)!r}, 'w')")
        for _ in range(depth):
            hostile = {"model": [np.ones(2), hostile]}
        with pytest.raises(RefusedPickleError, match=r"builtins\.exec"):
            load(pickle.dumps(hostile))
        pickle.loads(pickle.dumps(hostile))
        assert marker.exists(), "the pickle would not have done anything anyway"


def test_code_inside_the_memory_of_a_tensor_is_refused(tmp_path):
    marker = tmp_path / "executed"
    hidden = io.BytesIO()
    hostile = PickledCall(exec, f"open({str(marker)!r}, 'w')")
    torch.save(hostile, hidden, _use_new_zipfile_serialization=False)
    with pytest.raises(RefusedPickleError):
        load(pickle.dumps(PickledCall(torch.storage._load_from_bytes, hidden.getvalue())))
    assert not marker.exists()


def test_arrays_of_objects_and_of_structures_are_refused():
    for array in (np.array([{}, []], dtype=object), np.zeros(2, dtype="f4,i4"), np.array(["text"])):
        with pytest.raises(RefusedPickleError):
            load(pickle.dumps(array))


@pytest.mark.parametrize(
    "state",
    [
        b"}X\x04\x00\x00\x00makeX\x01\x00\x00\x00xsb.",  # {"make": "x"}
        b"N}X\x08\x00\x00\x00__call__X\x01\x00\x00\x00xs\x86b.",  # slots: (None, {"__call__": "x"})
    ],
)
def test_a_pickle_cannot_change_a_constructor(state):
    before = dict(ALLOWED)
    with pytest.raises(PickleError):
        load(b"\x80\x02cnumpy\ndtype\n" + state)
    assert before == ALLOWED
    assert load(pickle.dumps(np.ones(2))).tolist() == [1, 1]


def test_extra_names_are_allowed_for_one_call():
    data = pickle.dumps([torch.float32, torch.Size([1, 2])])
    assert load_plain_pickle(io.BytesIO(data), {"torch.float32": torch.float32}) == [torch.float32, (1, 2)]
    with pytest.raises(RefusedPickleError, match=r"torch\.float32"):
        load(data)


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize(
    "view", [(0, (9,), (1,)), (1, (4,), (1,)), (2, (4,), (1,)), (-1, (2,), (1,)), (0, (2,), (-1,))]
)
def test_a_tensor_may_not_reach_beyond_its_memory(view):
    memory = io.BytesIO()
    torch.save(torch.zeros(4).storage(), memory, _use_new_zipfile_serialization=False)
    storage = PickledCall(torch.storage._load_from_bytes, memory.getvalue())
    tensor = PickledCall(torch._utils._rebuild_tensor_v2, storage, *view, False, OrderedDict())
    with pytest.raises(PickleError):
        load(pickle.dumps(tensor))


SAMPLE = pickle.dumps({"model": {"w": np.arange(4, dtype="f4"), "t": torch.ones(2)}, "n": [1, "two"]})


def test_a_truncated_pickle_is_an_error():
    for length in range(len(SAMPLE)):
        with pytest.raises(PickleError):
            load(SAMPLE[:length])


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255))
def test_a_damaged_byte_raises_no_error_but_pickle_error(position, byte):
    damaged = bytearray(SAMPLE)
    damaged[position] = byte
    with contextlib.suppress(PickleError):
        load(bytes(damaged))


def nested_tuples(end):
    """Return a pickle of a tuple that holds the one before twice, 60 times over, then `end`."""
    levels = b"".join(b"h%ch%c\x86\x94" % (n, n) for n in range(60))
    return b"\x80\x04)\x94" + levels + end + b"."


@pytest.mark.parametrize(
    "end",
    [
        b"0}h<Ns",  # {key: None}
        b"0}(h<Nu",
        b"0(h<Nd",
        b"0\x8f(h<\x90",  # a set
        b"0(h<\x91",  # a frozenset
        b"0cbuiltins\nset\n]h<a\x85R",
        b"0ccollections\nOrderedDict\n]h<N\x86a\x85R",
        b"0cnumpy\ndtype\nh<\x85R",
    ],
)
def test_keys_that_take_for_ever_to_hash_are_refused(end):
    with pytest.raises(PickleError, match="it has a key of too many nested parts"):
        load(nested_tuples(end))


@pytest.mark.parametrize("kind", ["bytes", "bytearray"])
def test_zeros_by_their_number_are_refused(kind):
    with pytest.raises(RefusedPickleError, match=f"asks for {kind} of 1000000000 zeros"):
        load(f"cbuiltins\n{kind}\n(I1000000000\ntR.".encode())
