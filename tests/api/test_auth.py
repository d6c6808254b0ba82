"""The file of keys, and what the head of a request shows: decisions over values."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embatch.api.auth import PREFIX, Caller, Keys, judge_caller, line_of, new_key, read_keys
from embatch.errors import InvalidArgument

ALICE, BOB = new_key(), new_key()
IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
DIGESTS = st.binary(min_size=32, max_size=32)
BLANKS = st.text(" \t", min_size=1, max_size=4)
NOTHING = st.one_of(
    st.just(b""), BLANKS.map(str.encode), st.binary().map(lambda b: b"#" + b.replace(b"\n", b""))
)
ADDRESS = "/upload/v1beta/files?upload_id="
TOKEN = "A-z_" * 11


def keys(*pairs: tuple[str, str]) -> Keys:
    """Return the keys of a file that was made of ids and keys."""
    return read_keys("".join(f"{line_of(key, name)[1]}\n" for name, key in pairs).encode(), "keys")


KEYS = keys(("alice", ALICE), ("bob", BOB))


def caller(target: str = "/v1/batches", method: str = "GET", /, **headers: str) -> Caller:
    """Return who sends a request; an underscore in a header's name stands for a dash."""
    lines = [("Host", "h"), *((name.replace("_", "-"), value) for name, value in headers.items())]
    return judge_caller(h11.Request(method=method, target=target, headers=lines), KEYS)


def reason(found: Caller) -> str | None:
    """Return why a caller is refused."""
    return None if found.refusal is None else found.refusal.reason


def refused(data: bytes) -> str:
    """Return why a file is refused."""
    with pytest.raises(InvalidArgument) as error:
        read_keys(data, "keys")
    assert error.value.field == "--api-keys"
    return error.value.message


def test_a_key_is_long_new_and_known_by_its_beginning() -> None:
    """256 bits in signs that survive a shell, a header and a double click."""
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(rf"{PREFIX}[A-Za-z0-9]{{43}}", key) for key in made)
    assert 62**43 > 2**256
    assert len(set("".join(key.removeprefix(PREFIX) for key in made))) == 62


def test_a_line_holds_the_digest_and_not_the_key() -> None:
    """As `sha256sum` gives it; without an id one is made of it."""
    digest = hashlib.sha256(ALICE.encode()).hexdigest()
    assert line_of(ALICE, "alice") == ("alice", f"alice {digest}")
    assert line_of(ALICE, None) == (f"key-{digest[:8]}", f"key-{digest[:8]} {digest}")
    for name in ("", " ", "-a", "a b", "a\n", "ä", "#a", "a" * 65, "a/b"):
        with pytest.raises(InvalidArgument, match="1 to 64 letters"):
            line_of(ALICE, name)


@given(
    st.lists(st.tuples(IDS, DIGESTS), min_size=1, max_size=8, unique_by=(lambda p: p[0], lambda p: p[1])),
    st.data(),
)
def test_what_is_written_is_read(pairs: list[tuple[str, bytes]], data: st.DataObject) -> None:
    """In order, in either case of the digits, whatever blank lines, comments and line ends stand between."""
    lines: list[bytes] = []
    for name, digest in pairs:
        lines += data.draw(st.lists(NOTHING, max_size=2))
        digits = digest.hex().upper() if data.draw(st.booleans()) else digest.hex()
        before, between, after = data.draw(
            st.tuples(st.sampled_from(["", " ", "\t"]), BLANKS, st.sampled_from(["", " \t"]))
        )
        lines.append(f"{before}{name}{between}{digits}{after}".encode())
    end = data.draw(st.sampled_from([b"\n", b"\r\n"]))
    last = data.draw(st.sampled_from([b"", end]))
    assert read_keys(end.join(lines) + last, "keys").digests == tuple(pairs)


@given(st.binary() | st.text("a1f #\t\r\n\v\f\0-").map(str.encode))
@example(b"\xef\xbb\xbfalice " + b"0" * 64)
@example(b"a " + b"0" * 64 + b"\v")
@example(b"a\xc2\xa0" + b"0" * 64)
def test_whatever_stands_there_it_is_read_whole_or_refused(data: bytes) -> None:
    """No line is passed over in silence, and the message shows nothing of any."""
    lines = [line.strip(b" \t\r") for line in data.split(b"\n")]
    said = [line for line in lines if line and not line.startswith(b"#")]
    try:
        found = read_keys(data, "keys")
    except InvalidArgument as error:
        assert re.match("keys(, line [0-9]+: | holds no key)", error.message)  # noqa: PT017
        assert error.message.isascii()  # noqa: PT017
        assert error.message.isprintable()  # noqa: PT017
    else:
        assert [(name.encode(), digest) for name, digest in found.digests] == [
            (line.split()[0], bytes.fromhex(line.split()[1].decode())) for line in said
        ]


@pytest.mark.parametrize("line", ["alice", "alice 00", "alice " + "0" * 63, "alice " + "g" * 64,
                                  "alice " + "0" * 64 + " # hers", "-a " + "0" * 64, "0" * 64,
                                  "ä " + "0" * 64, "alice:" + "0" * 64,
                                  "a" * 65 + " " + "0" * 64])  # fmt: skip
def test_a_malformed_line_is_named_by_its_number_alone(line: str) -> None:
    """With what a line has to be."""
    said = refused(f"# keys\n\nbob {'1' * 64}\n{line}\n".encode())
    assert said.startswith("keys, line 4: a line is an id (")
    assert not any(word in said for word in line.split() if len(word) > 1)


def test_a_key_in_the_file_is_told_for_what_it_is() -> None:
    """It was stored in clear: mending the line is not enough."""
    said = refused(f"alice {ALICE}".encode())
    assert (
        said
        == "keys, line 1: a key itself stands here: put its SHA-256 in its place, and have the key replaced"
    )


@pytest.mark.parametrize("data", [b"", b"\n\n", b"# nobody yet\n", b" \t\r\n"])
def test_a_file_without_a_key_is_refused(data: bytes) -> None:
    """It would let nobody in, which nobody wants."""
    assert refused(data) == "keys holds no key: add one by embatch keys new >> FILE"


def test_what_stands_twice_is_refused_with_both_lines() -> None:
    """One id for two people, or one key under two names, tells nothing in a log."""
    first, second = line_of(ALICE, "alice")[1], line_of(BOB, "alice")[1]
    assert "line 3: the id stands in line 1 too" in refused(f"{first}\n\n{second}".encode())
    again = line_of(ALICE, "bob")[1].upper().replace("BOB", "bob")
    assert "line 2: the SHA-256 stands in line 1 too" in refused(f"{first}\n{again}".encode())


def test_either_header_shows_a_key_and_googles_counts() -> None:
    """The scheme in any case; without a right one the reason says what was sent."""
    assert caller(x_goog_api_key=ALICE) == Caller("alice")
    for scheme in ("Bearer", "bearer", "BEARER "):
        assert caller(authorization=f"{scheme} {BOB}") == Caller("bob")
    assert caller(x_goog_api_key=ALICE, authorization=f"Bearer {BOB}") == Caller("alice")
    assert caller(x_goog_api_key="", authorization=f"Bearer {BOB}") == Caller("bob")
    assert reason(caller()) == "NO_KEY"
    assert reason(caller(authorization=f"Basic {ALICE}")) == "NO_KEY"
    assert reason(caller(authorization="Bearer")) == "NO_KEY"
    for wrong in (ALICE[:-1], f"{ALICE}x", ALICE.upper(), PREFIX, hashlib.sha256(ALICE.encode()).hexdigest()):
        assert reason(caller(x_goog_api_key=wrong)) == "WRONG_KEY"
    assert reason(caller(x_goog_api_key=f"{ALICE}, {BOB}")) == "WRONG_KEY"


@pytest.mark.parametrize("name", ["key", "access_token", "oauth_token"])
def test_a_key_in_the_address_is_not_taken(name: str) -> None:
    """A right one neither; beside one in a header it does no more harm than it has done."""
    found = caller(f"/v1/batches?{name}={ALICE}")
    assert reason(found) == "KEY_IN_ADDRESS"
    assert found.refusal is not None
    assert ALICE not in found.refusal.encode().decode()
    assert caller(f"/v1/batches?{name}=x", x_goog_api_key=ALICE) == Caller("alice")


@pytest.mark.parametrize(
    ("method", "target", "open_"),
    [
        *(("GET", "/healthz", True), ("HEAD", "/healthz", True), ("GET", "/readyz", True)),
        *(("GET", "/readyz?verbose=1", True), ("POST", "/healthz", False), ("GET", "/healthz/", False)),
        *(("GET", "//healthz", False), ("GET", "/HEALTHZ", False), ("GET", "/v1/../healthz", False)),
        *(("GET", "/healthz%2f..", False), ("GET", "http://h/healthz", False), ("GET", "/x?/healthz", False)),
        *(("POST", ADDRESS + TOKEN, True), ("PUT", f"{ADDRESS}{TOKEN}&upload_protocol=resumable", True)),
        *(("POST", f"/resumable{ADDRESS}{TOKEN}", True), ("GET", ADDRESS + TOKEN, False)),
        *(
            ("POST", ADDRESS, False),
            ("POST", ADDRESS + TOKEN[:42], False),
            ("POST", ADDRESS + "x" * 65, False),
        ),
        *(("POST", f"{ADDRESS}{TOKEN}&upload_id=", False), ("POST", f"{ADDRESS}{TOKEN}%0a", False)),
        *(("POST", f"/upload/v1/files?x=upload_id={TOKEN}", False), ("DELETE", ADDRESS + TOKEN, False)),
        *(("POST", f"/upload/v1/files/?upload_id={TOKEN}", False), ("POST", "/upload/v1/files", False)),
        *(("POST", f"/v1/models/m:embedContent?upload_id={TOKEN}", False),),
        *(("POST", f"/upload/v1/files;upload_id={TOKEN}", False),),
    ],
)
def test_what_is_open_is_a_short_list(method: str, target: str, open_: bool) -> None:  # noqa: FBT001
    """Health, and the address of an upload under way; anything that only looks alike wants a key."""
    assert caller(target, method) == Caller(None) if open_ else reason(caller(target, method)) == "NO_KEY"
    assert caller(target, method, x_goog_api_key=BOB) == Caller("bob")


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126)), st.sampled_from(["GET", "POST", "PATCH"]))
def test_nothing_else_passes_without_a_key(path: str, method: str) -> None:
    """Default deny: whatever the path, a route of tomorrow too."""
    found = caller(f"/{path}", method)
    assert (found.refusal is None) == (
        f"/{path}".partition("?")[0] in ("/healthz", "/readyz") and method == "GET"
    )


@given(st.binary(max_size=80))
def test_only_the_key_itself_is_known(shown: bytes) -> None:
    """Neither its digest nor anything else."""
    known: dict[bytes, Any] = {ALICE.encode(): "alice", BOB.encode(): "bob"}
    assert KEYS.id_of(shown) == known.get(shown)
