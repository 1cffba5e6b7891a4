from __future__ import annotations

import os
import pickle
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parivox.listing import PathList, file_names

SUFFIXES = (".wav", ".flac")
NAMES = (
    *(
        "b.WAV",
        "a/z.flac",
        "a.wav",
        "a-b/x.wav",
        "a/b/c.wav",
        "a!/x.wav",
        "A.wav",
        "Z/y.wav",
        "d.wav/inner.wav",
    ),
    *(".hid.wav", ".git/x.wav", "a/.x/y.wav", "notes.txt", "x.wav.txt", ".wav", "wav", "e..wav", "name."),
    *("\u00e9.wav", "z\u0301.wav", "10.wav", "9.wav", "\ufffe.wav", "\U0001d11e.wav", "a/1.flac.wav"),
)


def tree(root: Path) -> Path:
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def slow(root: Path) -> list[Path]:
    """The same by `rglob`."""
    found = [path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    return sorted(p for p in found if not any(part[0] == "." for part in p.relative_to(root).parts))


def fast(root: Path) -> list[Path]:
    return [root / name for name in file_names(root, SUFFIXES)]


def test_lists_what_a_plain_search_finds_in_the_order_of_paths(tmp_path):
    assert fast(tree(tmp_path)) == slow(tmp_path)
    assert len(fast(tmp_path)) > 12


def test_a_name_that_is_no_text_keeps_its_place(tmp_path):
    names = [b"\xff.wav", "\ufffe.wav".encode(), "\N{HANGUL SYLLABLE HIH}.wav".encode(), b"a.wav"]
    try:
        for name in names:
            os.close(os.open(os.path.join(os.fsencode(tmp_path), name), os.O_CREAT))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    found = fast(tmp_path)
    assert found == slow(tmp_path) and {os.fsencode(path.name) for path in found} == {*names}
    assert list(PathList(tmp_path, file_names(tmp_path, SUFFIXES))) == found


def test_links_to_files_count_and_links_to_folders_do_not(tmp_path):
    root = tree(tmp_path / "root")
    (tmp_path / "far.wav").touch()
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "inner.wav").touch()
    links = {
        "file.wav": tmp_path / "far.wav",
        "folder": tmp_path / "more",
        "folder.wav": tmp_path / "more",
        "nowhere.wav": tmp_path / "gone",
        "circle.wav": root / "circle.wav",
        "through.wav": tmp_path / "far.wav" / "x",
        "up": root,
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    (root / "empty.flac").mkdir()
    found = fast(root)
    assert found == slow(root)
    assert root / "file.wav" in found and not {"folder.wav", "nowhere.wav"} & {path.name for path in found}
    (tmp_path / "link").symlink_to(root)
    assert fast(tmp_path / "link") == slow(tmp_path / "link") and len(fast(tmp_path / "link")) == len(found)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_left_out(tmp_path):
    tree(tmp_path)
    (tmp_path / "a").chmod(0)
    try:
        assert fast(tmp_path) == slow(tmp_path)
    finally:
        (tmp_path / "a").chmod(0o700)


def test_a_folder_is_listed_when_its_turn_comes(tmp_path, monkeypatch):
    seen: list[str] = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: seen.append(os.path.basename(folder)) or scan(folder))
    names = file_names(tree(tmp_path), SUFFIXES)
    next(names)
    assert "Z" not in seen
    assert list(names) and seen.count("Z") == 1


def test_is_a_sequence_of_paths(tmp_path):
    names = sorted(f"s{k % 3}/{k}.wav" for k in range(20))
    paths = [tmp_path / name for name in names]
    held = PathList(tmp_path, names)
    assert len(held) == 20 and list(held) == paths and [held[k] for k in range(-20, 20)] == [*paths, *paths]
    assert held[3:9:2] == tuple(paths[3:9:2]) and held[::-1] == tuple(reversed(paths))
    assert [name.decode() for name in held.names()] == names and held.name(4).decode() == names[4]
    for index in (20, -21):
        with pytest.raises(IndexError, match=r"of 20 paths"):
            held[index]
    again = pickle.loads(pickle.dumps(held))
    assert again == held and hash(again) == hash(held)
    assert held != PathList(tmp_path, names[1:]) and held != PathList(tmp_path / "x", names)
    # The same bytes, cut elsewhere.
    assert PathList(tmp_path, ["ab", "c"]) != PathList(tmp_path, ["a", "bc"])
    assert not PathList(tmp_path, [])


@given(
    st.sets(st.text("ab./-", min_size=1, max_size=4), max_size=8), st.text("ab./-", min_size=1, max_size=4)
)
def test_knows_its_own_paths(names, other):
    root = Path("/corpus")
    paths = sorted({root / name for name in names if ".." not in name and not name.startswith("/")} - {root})
    held = PathList(root, [path.relative_to(root).as_posix() for path in paths])
    assert all(path in held for path in paths)
    for path in (root / other, Path(other), root):
        assert (path in held) == (path in paths)
    assert str(root / "a") not in held


def test_takes_little_memory_for_each_path():
    random.seed(0)
    names = sorted(f"speaker{k:04}/utterance_{random.randrange(10**6)}.flac" for k in range(10_000))
    size = len(pickle.dumps(PathList(Path("/corpus"), names)))
    assert size < 1.1 * sum(map(len, names)) + 8 * len(names)
