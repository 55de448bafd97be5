"""Waterbirds and CelebA, from files of their layouts made here."""

import pytest
import torch

from robustcore.density.groups import load_celeba, load_waterbirds

Image = pytest.importorskip("PIL.Image")


def picture(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), colour).save(path)


def waterbirds(root):
    """Six birds; one name has a comma, as CSV quotes it."""
    rows = [
        ("001.Albatross/a.png", 1, 0, 1), ("001.Albatross/b.png", 1, 0, 0),
        ('"002.Wren, Winter/c.png"', 0, 0, 0), ("002.Wren/d.png", 0, 1, 1),
        ("002.Wren/e.png", 0, 2, 0), ("001.Albatross/f.png", 1, 0, 1),
    ]  # fmt: skip
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for number, (name, y, split, place) in enumerate(rows, start=1):
        lines.append(f"{number},{name},{y},{split},{place},/o/ocean/{number}.jpg")
        picture(root / name.strip('"'), (40 * number, 255, 0))
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


def celeba(root):
    names = ["5_o_Clock_Shadow", "Blond_Hair", "Male", "Young"]
    signs = ["-1  1 -1  1", " 1 -1  1  1", "-1 -1 -1 -1", "-1  1  1  1"]
    lines = [str(len(signs)), " ".join(names) + " "]
    parts = []
    for number, values in enumerate(signs, start=1):
        lines.append(f"{number:06d}.jpg {values}")
        parts.append(f"{number:06d}.jpg {0 if number < 4 else 1}")
        picture(root / "img_align_celeba" / f"{number:06d}.jpg", (0, 0, 60 * number))
    (root / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    (root / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    return root


def test_waterbirds(tmp_path):
    data = load_waterbirds(waterbirds(tmp_path))
    assert len(data) == 4
    assert data.labels.tolist() == [1, 1, 0, 1]
    assert data.attributes.tolist() == [1, 0, 0, 1]
    assert data.groups.tolist() == [3, 2, 0, 3]
    assert data.group_counts.tolist() == [1, 0, 1, 2]
    assert data.group_names[3] == "waterbird, water"
    image, label, group = data[2]
    assert (label, group) == (0, 0)
    assert image.shape == (3, 4, 5)
    assert torch.equal(image[:, 0, 0], torch.tensor([120, 255, 0]) / 255)
    assert len(load_waterbirds(str(tmp_path), "val")) == 1
    assert load_waterbirds(tmp_path, "test", transform=lambda image: image.size)[0] == (
        (5, 4),
        0,
        0,
    )
    batch = next(iter(torch.utils.data.DataLoader(data, 4)))
    assert batch[0].shape == (4, 3, 4, 5)
    assert torch.equal(batch[2], data.groups)


def test_celeba(tmp_path):
    data = load_celeba(celeba(tmp_path))
    assert data.labels.tolist() == [1, 0, 0]
    assert data.groups.tolist() == [2, 1, 0]
    assert data.group_names == (
        "not Blond_Hair, not Male", "not Blond_Hair, Male", "Blond_Hair, not Male",
        "Blond_Hair, Male",
    )  # fmt: skip
    image, label, group = data[1]
    assert (label, group) == (0, 1)
    assert abs(float(image[2].mean()) * 255 - 120) < 3  # JPEG
    assert load_celeba(tmp_path, "val").groups.tolist() == [3]
    other = load_celeba(tmp_path, target="Young", attribute="5_o_Clock_Shadow")
    assert other.groups.tolist() == [2, 3, 0]


def broken(root, name, old, new):
    path = root / name
    path.write_text(path.read_text().replace(old, new))
    return root


@pytest.mark.parametrize(
    ("make", "load", "name", "old", "new", "message"),
    [
        (waterbirds, load_waterbirds, "metadata.csv", "split,", "part,", r"root: metadata\.csv, "
         "line 2: want img_filename, y, place and split"),
        (waterbirds, load_waterbirds, "metadata.csv", "a.png,1,", "a.png,2,", "line 2: got y 2"),
        (waterbirds, load_waterbirds, "metadata.csv", "a.png,1,", "a.png,x,", "line 2: want"),
        (celeba, load_celeba, "list_attr_celeba.txt", "-1  1 -1  1", "-1  1 -1", "line 3: want a "
         "name and 4 times"),
        (celeba, load_celeba, "list_attr_celeba.txt", " 1 -1  1  1", " 1 -1  7  1", "line 4: want"),
        (celeba, load_celeba, "list_attr_celeba.txt", "000003", "000013", "has no 000013.jpg"),
        (celeba, load_celeba, "list_eval_partition.txt", "jpg 1", "jpg", "line 4: want 2 words"),
        (celeba, load_celeba, "list_attr_celeba.txt", "Male", "Man", "attribute: got 'Male'"),
    ],
)  # fmt: skip
def test_broken_files(tmp_path, make, load, name, old, new, message):
    root = broken(make(tmp_path), name, old, new)
    with pytest.raises(ValueError, match=message):
        load(root)


def test_bad_input(tmp_path):
    waterbirds(tmp_path)
    with pytest.raises(ValueError, match="root: cannot read"):
        load_waterbirds(tmp_path / "elsewhere")
    with pytest.raises(TypeError, match="root: got 3"):
        load_celeba(3)
    with pytest.raises(ValueError, match="split: got 'valid'"):
        load_waterbirds(tmp_path, "valid")
    with pytest.raises(TypeError, match="transform: got str"):
        load_waterbirds(tmp_path, transform="resize")
