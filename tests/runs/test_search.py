"""What is read of folders and globs: each real file once, and what is not is an error or counted by name."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embatch.errors import InvalidArgument
from embatch.runs.overlap import check_apart
from embatch.runs.sources import open_source
from embatch.runs.sources.globs import Glob

if TYPE_CHECKING:
    from pathlib import Path


def lines(path: Path, *texts: str) -> Path:
    """Write JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f'{{"text":"{text}"}}\n' for text in texts).encode())
    return path


def texts_of(place: Path | str) -> list[str | None]:
    """Return every text of a place."""
    return [text for rows in open_source(place, None, None).blocks() for text in rows.texts]


@pytest.mark.parametrize("glob", ["", "/**", "/**/*.jsonl", "/*/../**/*"])
def test_links_in_a_circle_end(tmp_path: Path, glob: str) -> None:
    """Two that lead back make more ways than could ever be gone; each real file is read once."""
    root = tmp_path / "in"
    lines(root / "a" / "one.jsonl", "one")
    lines(root / "two.jsonl", "two")
    for name, to in (("self", "."), ("again", "."), ("a/up", ".."), ("a/twice", "../a")):
        (root / name).symlink_to(to)
    if ".." in glob:
        with pytest.raises(InvalidArgument):
            open_source(f"{root}{glob}", None, None)
        return
    assert texts_of(f"{root}{glob}") == ["one", "two"]


def test_each_real_file_is_read_once_by_its_own_name(tmp_path: Path) -> None:
    """Links to files and folders, hard links, and folders outside that are linked twice."""
    root, other = tmp_path / "in", tmp_path / "other"
    lines(root / "z.jsonl", "z")
    lines(other / "deep" / "o.jsonl", "o")
    (root / "a.jsonl").symlink_to("z.jsonl")
    os.link(root / "z.jsonl", root / "y.jsonl")
    (root / "l1").symlink_to(other)
    (root / "l2").symlink_to("../other")
    (root / "l0").symlink_to("../other/deep")
    source = open_source(root, None, None)
    assert [os.path.relpath(file.path, root) for file in source.files] == ["l0/o.jsonl", "y.jsonl"]
    assert source.notes == (
        "left out 4, for they lead to what is read by another name: a.jsonl, l1/deep/, l2/, 1 more",
    )


def test_a_link_to_above_is_not_followed(tmp_path: Path) -> None:
    """What lies beside the folder was not named."""
    lines(tmp_path / "beside.jsonl", "beside")
    lines(tmp_path / "in" / "a.jsonl", "a")
    (tmp_path / "in" / "up").symlink_to("..")
    source = open_source(tmp_path / "in", None, None)
    assert [file.name for file in source.files] == ["a.jsonl"]
    assert source.notes == ("left out 1, for they lead to a folder above: up/",)


@pytest.mark.parametrize(
    "place", ["in", "in/*", "in/*.jsonl", "in/**/*.jsonl", "in/5.jsonl", "in/[0-9].jsonl"]
)
def test_a_broken_link_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Of a folder, of a glob that names it, and by its own name."""
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "in" / "1.jsonl", "a")
    (tmp_path / "in" / "5.jsonl").symlink_to("nowhere/5.jsonl")
    with pytest.raises(InvalidArgument, match=r"in/5\.jsonl is a broken link") as error:
        open_source(place, None, None)
    assert error.value.field == "IN"
    assert texts_of("in/1*.jsonl") == ["a"]


def test_what_is_left_out_is_counted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its reason, with some of the names."""
    root = tmp_path / "in"
    lines(root / "1.jsonl", "a")
    for name in (
        "3.json",
        "README.md",
        "part-6",
        "x.tmp",
        "_4.jsonl",
        ".git/a.jsonl",
        "out.npy.embatch/a.jsonl",
    ):
        lines(root / name, "no")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(root)  # its path may be too long for a socket
        listening.bind("s.jsonl")
        os.mkfifo(root / "p.jsonl")
        source = open_source(root, None, None)
    assert [file.name for file in source.files] == ["1.jsonl"]
    assert sorted(source.notes) == [
        "left out 1, for they are what runs remember: out.npy.embatch/",
        "left out 2, for their names begin with a dot or an underscore: .git/, _4.jsonl",
        "left out 2, for they are no files, but pipes, sockets or devices: p.jsonl, s.jsonl",
        "left out 4, for their endings tell no format that embatch reads: 3.json, README.md, part-6, 1 more",
    ]
    assert open_source(f"{root}/1.jsonl", None, None).notes == ()
    (root / "1.jsonl").unlink()
    with pytest.raises(InvalidArgument, match=r"any that is read: left out .*3\.json"):
        open_source(root, None, None)


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("*", ["1"]),
        ("*.*", ["1"]),
        ("_*.jsonl", ["_4"]),
        ("[_]4.jsonl", ["_4"]),
        (".h/*", ["h"]),
        ("**/.h/*", ["h"]),
        ("*.json", "3.json"),
        ("part-*", "part-6"),
        ("p?rt-6", "part-6"),
    ],
)
def test_a_glob_that_names_a_file_outright_reads_or_refuses_it(
    tmp_path: Path, glob: str, found: list[str] | str
) -> None:
    """A hidden one too, where its dot or underscore is spelled; stars alone leave out as a folder does."""
    for name in ("1.jsonl", "3.json", "part-6", "_4.jsonl", ".h/h.jsonl"):
        lines(tmp_path / name, name.rpartition("/")[2].partition(".")[0])
    if isinstance(found, list):
        assert texts_of(f"{tmp_path}/{glob}") == found
    else:
        with pytest.raises(InvalidArgument, match=f"{found}: embatch reads") as error:
            open_source(f"{tmp_path}/{glob}", None, None)
        assert "narrower glob" in str(error.value)


def test_folders_that_a_glob_meets_are_counted(tmp_path: Path) -> None:
    """One star does not go into them."""
    lines(tmp_path / "1.jsonl", "a")
    lines(tmp_path / "deep" / "2.jsonl", "b")
    assert open_source(f"{tmp_path}/*", None, None).notes == (
        "left out 1, for they are folders, and ** reads those: deep/",
    )
    assert open_source(f"{tmp_path}/*.jsonl", None, None).notes == ()


@pytest.mark.parametrize("place", ["-", "/dev/stdin", "PIPE", "/dev/null"])
def test_what_can_be_read_but_once_is_refused_at_once(tmp_path: Path, place: str) -> None:
    """A pipe, standard input, a device: the message says what to type."""
    os.mkfifo(tmp_path / "in.jsonl")
    with pytest.raises(
        InvalidArgument, match=r"write it to a file first, such as `cat > in\.jsonl`"
    ) as error:
        open_source(place.replace("PIPE", f"{tmp_path}/in.jsonl"), None, None)
    assert error.value.field == "IN"


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """By its escapes; left out it is none of the matter."""
    path = os.fsencode(tmp_path) + b"/\xff.jsonl"
    with open(path, "wb") as file:  # noqa: PTH123  (bytes)
        file.write(b'{"text":"a"}\n')
    with pytest.raises(InvalidArgument, match=r"\\udcff\.jsonl is not UTF-8: rename it"):
        open_source(tmp_path, None, None)


def test_an_output_in_a_folder_that_is_linked_is_within_the_input(tmp_path: Path) -> None:
    """It would be read the next time."""
    lines(tmp_path / "other" / "a.jsonl", "a")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to("../other")
    source = open_source(tmp_path / "in", None, None)
    with pytest.raises(InvalidArgument, match="would be a part of the input"):
        check_apart(source, f"{tmp_path}/other/out.jsonl")
    check_apart(source, f"{tmp_path}/out.jsonl")


def _matches(glob: str, path: str) -> bool:
    """Say it once more, slowly: whether a glob names a path without hidden names."""
    if not glob:
        return not path
    if glob.startswith("**/") and (
        _matches(glob[3:], path)
        or any(_matches(glob[3:], path[at + 1 :]) for at, one in enumerate(path) if one == "/")
    ):
        return True
    if glob.startswith("**/"):
        return False
    if glob.startswith("**"):
        return any(_matches(glob[2:], path[at:]) for at in range(len(path) + 1))
    if glob[0] == "*":
        name = path.find("/") if "/" in path else len(path)
        return any(_matches(glob[1:], path[at:]) for at in range(name + 1))
    taken = bool(path) and (path[0] != "/" if glob[0] == "?" else path[0] == glob[0])
    return taken and _matches(glob[1:], path[1:])


@given(st.text("ab/*?", max_size=7), st.text("ab/", max_size=7))
@settings(max_examples=600, deadline=None)
def test_a_glob_means_what_it_says(glob: str, path: str) -> None:
    """Stars within a folder, two of them over folders, against what is plainly said."""
    assert Glob(glob).names(path) == _matches(glob, path)


@pytest.mark.parametrize(
    ("glob", "path", "named"),
    [
        ("a[b-d].x", "ac.x", True),
        ("a[!b-d].x", "ac.x", False),
        ("a[!b-d].x", "a/.x", False),
        ("a[]", "a[]", True),
        ("a[z-a]", "am", False),
        ("a[[]b", "a[b", True),
        ("a[-x]", "a-", True),
    ],
)
def test_classes_of_characters(glob: str, path: str, *, named: bool) -> None:
    """Ranges, exclusions, and brackets that are only that."""
    assert Glob(glob).names(path) is named
