"""The public names of `mask2former`."""

import pydoc
import subprocess
import sys

import pytest

import mask2former


def test_every_public_name_can_be_imported():
    for name in mask2former.__all__:
        assert getattr(mask2former, name)


def test_dir_and_help_show_the_public_names():
    assert {*mask2former.__all__} <= {*dir(mask2former)}
    assert not {"Any", "TYPE_CHECKING", "import_module"} & {*dir(mask2former)}
    text = pydoc.render_doc(mask2former, renderer=pydoc.plaintext)
    assert "class Predictor(" in text and "get_cfg() ->" in text


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="MaskFormer3"):
        _ = mask2former.MaskFormer3


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("DefaultPredictor", r'Predictor\("model_final.pth"\)'),
        ("pipeline", "Predictor.from_zoo"),
        ("from_pretrained", "Predictor.from_zoo"),
        ("Visualizer", r"result.draw\(\)"),
        ("DatasetCatalog", "from mask2former.data import DatasetCatalog"),
    ],
)
def test_a_name_of_another_library_is_an_error_that_says_what_to_type(name, right):
    with pytest.raises(ImportError, match=f"^mask2former has no {name}; type {right}"):
        exec(f"from mask2former import {name}")
    with pytest.raises(ImportError, match=right):
        getattr(mask2former, name)


def test_the_config_alone_does_not_load_torch():
    program = "import sys, mask2former; mask2former.get_cfg(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_names_that_need_detectron2_say_so_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "mask2former.detectron2_host", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*detectron2\.git .*docs/detectron2\.md"):
        _ = mask2former.MaskFormerSemanticDatasetMapper
