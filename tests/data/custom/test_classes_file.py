"""Classes files as people and annotation tools write them."""

import pytest

from mask2former.data import DatasetError
from mask2former.data.custom.classes_file import read_classes_file

THREE = {0: "background", 1: "crack", 2: "road"}
READ = [  # name, content, names by value
    ("labels.txt", "__ignore__\nbackground\ncrack\nroad\n", THREE),  # labelme
    ("c.txt", "# of project 7\nbackground\n\n# roads\ncrack\nroad\n", THREE),
    ("c.txt", "# value name\n0 background\n1 crack\n2 road\n", THREE),
    ("c.txt", "0 background\n1 __ignore__\n2 road\n", {0: "background", 1: "ignore", 2: "road"}),
    ("c.txt", '["background", "crack", "road"]', THREE),
    ("c.names", "background\ncrack\nroad", THREE),
    ("c.txt", "zone 1\nzone 2\n", {0: "zone 1", 1: "zone 2"}),
    ("data.yaml", "train: ../x\nnc: 3\nnames: ['background', 'crack', 'road']\n", THREE),  # YOLO
    ("data.yml", "names:\n  0: background\n  1: crack\n  2: road\n", THREE),
    ("c.yaml", "- background\n- crack\n- road\n", THREE),
    ("c.json", '{"0": "background", "1": "crack", "2": "road"}', THREE),
    ("c.json", '{"categories": [{"id": 3, "name": "a"}, {"id": 4, "name": 5}]}', {3: "a", 4: "5"}),
    ("_classes.csv", "Pixel Value, Class\n0, background\n1, crack\n2, road\n", THREE),  # Roboflow
    ("_classes.csv", "Pixel Value, Class\n0, background\n", {0: "background"}),
    ("c.csv", '0;"background"\n1;"crack"\n2;"road"\n', THREE),
    ("c.csv", "Idx,Ratio,Name\n0,0.5,background\n1,0.1,crack\n2,0.2,road\n", THREE),
    ("c.csv", "background\ncrack\nroad\n", THREE),
    ("c.csv", 'Name\n"background"\n"crack"\n"road"\n', THREE),
    ("c.txt", "grade 1\ngrade 2\n", {0: "grade 1", 1: "grade 2"}),
    ("c.txt", "\ufeffbackground\r\n\r\ncrack\r\nroad\r\n", THREE),
]


@pytest.mark.parametrize(("file", "content", "names"), READ)
def test_files_of_tools_are_read(tmp_path, file, content, names):
    (tmp_path / file).write_text(content)
    assert read_classes_file(tmp_path / file).names == names


DOUBLED = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40))

REFUSED = [
    (
        "labelmap.txt",
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:0,9,0::\n",
        "it lists colors",
    ),
    ("c.txt", "64 128 64 Animal\n192 0 128 Archway\n", "it lists colors, as CVAT"),
    ("c.txt", "background: 0\nroad: 1\n", "its values follow the names; write lines VALUE NAME"),
    ("c.txt", "road 1\nbackground 0\n", "its values follow the names; write lines VALUE NAME"),
    ("c.txt", "// my classes\nroad\nsky\n", "its line '// my classes' is not of a list of names"),
    ("c.txt", "nc: 2\nnames: [a, b]\n", r"its line 'names: \[a, b\]' is not of a list of names"),
    ("c.pbtxt", "item {\n id: 1\n name: 'a'\n}\n", "its line 'item {' is not"),
    ("c.csv", "name,id\nroad,1\n", "its row 'road,1' is not a value and a name"),
    ("c.csv", "0,0.5,road\n1,0.5,sky\n", "it has 3 columns, and none is headed 'name'"),
    ("c.csv", "name,r,g,b\nroad,0,0,128\n", "it has 4 columns, and none is headed 'name'"),
    ("c.json", '[{"id": null, "name": "a"}]', "'NoneType' is not a label value from 0 to 65535"),
    ("c.json", '[{"id": -1, "name": "a"}]', "'-1' is not a label value"),
    ("c.json", '[{"id": 70000, "name": "a"}]', "'70000' is not a label value"),
    ("c.json", '[{"id": 1.5, "name": "a"}]', "'1.5' is not a label value"),
    ("c.json", '[{"id": 1, "name": null}]', "the name of 1 is 'NoneType', not text"),
    ("c.json", "[" * 100_000, "nested too deeply"),
    ("c.json", '{"labels": ["sky"], "version": 2}', "it has no 'names', only labels, version; expected"),
    ("c.yaml", "names: [a, [b]]", "expected a list of names"),
    ("c.yaml", "names: [a\n", "line 2, column 1: expected"),
    ("c.yaml", "names: {0: !!timestamp 1}", "a tag that does not fit its value"),
    ("c.yaml", DOUBLED, "holds more than 100000 values, with its aliases written out"),
    ("c.txt", "# only a comment\n", "there is no class in it"),
    ("_classes.csv", "Pixel Value, Class\n", "there is no class in it"),
    ("c.csv", "", "there is no class in it"),
]


@pytest.mark.parametrize(("file", "content", "message"), REFUSED)
def test_other_files_are_refused(tmp_path, file, content, message):
    (tmp_path / file).write_text(content)
    with pytest.raises(DatasetError, match=message) as raised:
        read_classes_file(tmp_path / file)
    assert file in str(raised.value) and len(str(raised.value)) < 400 and "\n" not in str(raised.value)


def test_a_folder_or_bytes_are_no_classes_file(tmp_path):
    (tmp_path / "c.txt").write_bytes(b"\xff\xfea\x00")
    for path in (tmp_path, tmp_path / "c.txt"):
        with pytest.raises(DatasetError, match="is not a classes file"):
            read_classes_file(path)
