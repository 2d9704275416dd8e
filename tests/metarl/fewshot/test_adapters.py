"""Tables and labelled data sets of other packages become families."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from metarl import from_dataset, from_table
from metarl.types import Split

SCHOOLS = ["north", "south", "west", "east"] * 10
AGES, HEIGHTS = list(range(40)), [100.0 + age for age in range(40)]
MARKS = [2.0 * age for age in AGES]
COLUMNS: dict[str, Any] = {"school": SCHOOLS, "age": AGES, "height": HEIGHTS, "mark": MARKS}
OPTIONS: dict[str, Any] = {"shots": 3, "normalise": False, "splits": {"train": ["north", "west"], "test": ["east"]}}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def check_schools(family: Any) -> None:
    assert family.keys == ("east", "north", "south", "west")
    assert (family.spec.input_shape, family.spec.output_size) == ((2,), 1)
    tasks = family.sample(20, "train", generator())
    drawn = tasks.draw("support", generator())
    assert {family.keys[number] for number in tasks.parameters["group"].tolist()} == {"north", "west"}
    ages = drawn.inputs[..., 0]
    assert torch.equal(drawn.inputs[..., 1], 100 + ages)
    assert torch.equal(drawn.targets[..., 0], 2 * ages)
    for task, number in enumerate(tasks.parameters["group"].tolist()):
        assert {SCHOOLS[int(age)] for age in ages[task].tolist()} == {family.keys[number]}


def test_columns_become_a_family() -> None:
    check_schools(from_table(COLUMNS, "school", "mark", **OPTIONS))
    two = from_table(COLUMNS, group="school", target=["mark", "age"], shots=2)
    assert (two.spec.input_shape, two.spec.output_size) == ((1,), 2)
    assert two.columns == ("height",)


def test_a_dataframe_becomes_a_family() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(COLUMNS)
    check_schools(from_table(frame, "school", "mark", **OPTIONS))
    frame["school"] = frame["school"].astype("category")
    frame["age"] = frame["age"].astype("Int64")
    check_schools(from_table(frame, "school", "mark", **OPTIONS))
    frame.loc[5, "age"] = pandas.NA
    with pytest.raises(ValueError, match="inputs, column 'age': 1 of 40 values are missing, first in row 5"):
        from_table(frame, "school", "mark", **OPTIONS)
    frame["when"] = pandas.Timestamp("2026-01-01")
    with pytest.raises(ValueError, match="column 'when' holds something else than numbers"):
        from_table(frame, "school", "mark", **OPTIONS)


def test_a_hugging_face_table_becomes_a_family() -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict(COLUMNS)
    check_schools(from_table(table, "school", "mark", **OPTIONS))
    with pytest.raises(ValueError, match="the table has the splits train: choose one of them"):
        from_table(datasets.DatasetDict(train=table), "school", "mark")


def test_a_file_becomes_a_family(tmp_path: Path) -> None:
    path = tmp_path / "schools.csv"
    lines = [",".join(COLUMNS), *(",".join(map(str, row)) for row in zip(*COLUMNS.values(), strict=True))]
    path.write_text("\n".join(lines))
    check_schools(from_table(path, "school", "mark", **OPTIONS))
    lines[7] = lines[7].replace(",6,", ",?,")
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="inputs, column 'age': 1 of 40 values are missing, first in row 6"):
        from_table(str(path), "school", "mark", **OPTIONS)
    imputed = from_table(path, "school", "mark", **OPTIONS | {"missing": "mean", "normalise": True})
    inputs = imputed.units().inputs
    assert inputs is not None
    assert inputs.fills
    path.write_text("a,b\n1\n")
    with pytest.raises(ValueError, match="line 2: 1 cells where 2 were expected"):
        from_table(path, "a", "b")
    path.write_text("a,a\n1,2\n")
    with pytest.raises(ValueError, match="two columns 'a'"):
        from_table(path, "a", "b")


def test_whole_numbers_of_groups_are_keys(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("group,x,y\n" + "\n".join(f"{7 + row % 3},{row},{row}" for row in range(30)))
    family = from_table(path, "group", "y", shots=2, splits={"train": [7, 9], "test": [8]})
    assert family.keys == (7, 8, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group": "town", "target": "mark"}, "there is no column 'town': the table has school, age, height, mark"),
        ({"group": "age", "target": "mark"}, "column 'school' holds something else than numbers, such as 'north'"),
        ({"group": "school", "target": "school"}, "the column 'school' tells the groups"),
        ({"group": "school", "target": ["age", "height", "mark"]}, "no column is left to predict age, height, mark"),
    ],
)
def test_wrong_columns_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_table(COLUMNS, **arguments)


def test_what_is_no_table_is_refused() -> None:
    with pytest.raises(ValueError, match="a list is no table"):
        from_table([1, 2], "a", "b")
    with pytest.raises(ValueError, match="columns have 40, 39 rows"):
        from_table(COLUMNS | {"age": AGES[1:]}, "school", "mark", inputs=["height", "age"])


class Squares(Dataset[Any]):
    """Pairs of a grey image and a class, as torchvision's data sets give them."""

    classes = ("dark", "middle", "bright")

    def __init__(self, kind: str = "PIL", labels: Any = range(30)) -> None:
        self.kind, self.labels = kind, [label % 3 if isinstance(label, int) else label for label in labels]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: int) -> tuple[Any, Any]:
        if item >= len(self):
            raise IndexError(item)
        size = 9 if self.kind == "sizes" and item == 4 else 8
        pixels = np.full((size, size), 100 * (item % 3), dtype=np.uint8)
        if self.kind == "PIL" or self.kind == "sizes":
            image = pytest.importorskip("PIL.Image").fromarray(pixels)
            return image, self.labels[item]
        return torch.from_numpy(pixels[None] / 255.0).float(), self.labels[item]


SPLITS: dict[Split, Any] = {"train": range(3)}


@pytest.mark.parametrize("kind", ["PIL", "tensor"])
def test_a_data_set_becomes_a_family(kind: str) -> None:
    family = from_dataset(Squares(kind), ways=2, shots=2, classes=SPLITS)
    assert family.names == Squares.classes
    assert family.inputs.shape == (30, 1, 8, 8)
    tasks = family.sample(10, "train", generator())
    drawn = tasks.draw("support", generator())
    shades = drawn.inputs.mean((2, 3, 4))
    expected = tasks.parameters["classes"].gather(1, drawn.targets) * 100 / 255
    torch.testing.assert_close(shades, expected)


def test_other_data_sets_become_families() -> None:
    tensors = TensorDataset(torch.rand(30, 4), torch.arange(30) % 3)
    assert torch.equal(from_dataset(tensors, ways=2, classes=SPLITS).inputs, tensors.tensors[0])
    named = from_dataset(Squares("tensor", ["cat", "ant", "bee"] * 10), ways=2, classes=SPLITS)
    assert named.names == ("ant", "bee", "cat")
    assert named.labels[:3].tolist() == [2, 0, 1]


def test_a_hugging_face_data_set_becomes_a_family() -> None:
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("PIL")
    images = [Squares()[item][0] for item in range(30)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(Squares.classes))})
    made = datasets.Dataset.from_dict({"image": images, "label": [item % 3 for item in range(30)]}, features=features)
    family = from_dataset(made, ways=2, classes=SPLITS)
    assert family.names == Squares.classes
    assert torch.equal(family.inputs, from_dataset(Squares(), ways=2, classes=SPLITS).inputs)
    with pytest.raises(ValueError, match="no column 'picture': name one of image, label as inputs"):
        from_dataset(made, inputs="picture")


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())


def test_wrong_data_sets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"item 4 of the data set is torch.uint8 \(1, 9, 9\), and item 0 is"):
        from_dataset(Squares("sizes"))
    with pytest.raises(ValueError, match="Endless has no length"):
        from_dataset(Endless())
    with pytest.raises(ValueError, match="labels are float: expected whole numbers, or texts"):
        from_dataset(Squares("tensor", [0.5] * 30))
    with pytest.raises(ValueError, match=r"items of the data set are Tensor: expected \(input, label\)"):
        from_dataset(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="name parts of dictionaries"):
        from_dataset(Squares("tensor"), label="label")
    with pytest.raises(ValueError, match="holds no items"):
        from_dataset(Squares("tensor", []))
