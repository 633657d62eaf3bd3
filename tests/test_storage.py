import pytest

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import Store


def test_a_file_is_whole_or_not_there(tmp_path):
    store = Store(str(tmp_path))
    with pytest.raises(RuntimeError), store.place("a/b.txt") as path:  # noqa: PT012
        path.write_text("half")
        raise RuntimeError
    assert not store.exists("a/b.txt")
    assert list((tmp_path / "a").iterdir()) == []  # nor what was written so far
    store.write("a/b.txt", b"whole")
    assert store.read("a/b.txt") == b"whole"
    assert store.list("a") == ["b.txt"]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_and_a_directory_come_back_as_written(tmp_path, scheme):
    store = Store(f"{scheme}{tmp_path}")
    store.write("a/b.txt", b"content")
    with store.place("models/fold-0") as folder:
        folder.mkdir()
        (folder / "x.bin").write_bytes(b"weights")
    assert store.read("a/b.txt") == b"content"
    assert store.list("models") == ["fold-0"]
    assert store.exists("models/fold-0/x.bin")
    with store.fetched("models/fold-0") as folder:
        assert (folder / "x.bin").read_bytes() == b"weights"
    with store.fetched("a/b.txt") as path:
        assert path.read_bytes() == b"content"


def test_a_directory_is_replaced_as_a_whole(tmp_path):
    store = Store(str(tmp_path))
    for content in ("first", "second"):
        with store.place("model") as folder:
            folder.mkdir()
            (folder / content).write_text(content)
    assert store.list("model") == ["second"]


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CxrltError, match=r"missing\.json cannot be read"):
        Store(str(tmp_path)).read_json("missing.json")


def test_a_storage_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CxrltError, match="cannot be written"):
        Store(str(tmp_path / "file" / "below")).check_writable()
