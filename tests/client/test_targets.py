"""Names of targets, keys from the environment, and what each target can do."""

from __future__ import annotations

from pathlib import Path

import pytest

from embatch import AsyncClient, Client, InvalidArgument, Unauthenticated
from embatch.client.providers.embatch import EMBATCH
from embatch.client.targets import UNSAID, named, resolve

DATA = Path("/data")


def test_gemini_takes_googles_variables_and_googles_wins() -> None:
    """GOOGLE_API_KEY wins over GEMINI_API_KEY, and what the caller gives over both."""
    both = {"GOOGLE_API_KEY": "google", "GEMINI_API_KEY": "gemini"}
    with pytest.warns(UserWarning, match="GOOGLE_API_KEY and GEMINI_API_KEY are set and differ") as told:
        assert resolve("gemini", key=None, data=DATA, environ=both).key == "google"
    assert "gemini" not in str(told[0].message).replace("GEMINI", "")
    assert resolve("gemini", key=None, data=DATA, environ={"GEMINI_API_KEY": "gemini"}).key == "gemini"
    found = resolve("gemini", key="mine", data=DATA, environ=both)
    assert found.headers == {"x-goog-api-key": "mine"}
    assert found.at("/v1beta/batches") == "https://generativelanguage.googleapis.com/v1beta/batches"
    assert found.provider.name == "gemini"
    assert found.provider.model == "gemini-embedding-001"


def test_two_variables_that_agree_are_no_matter() -> None:
    """Nor are they where the caller gives a key, nor one that holds blanks alone."""
    environ = {"GOOGLE_API_KEY": "same\n", "GEMINI_API_KEY": " same"}
    assert resolve("gemini", key=None, data=DATA, environ=environ).key == "same"
    environ = {"GOOGLE_API_KEY": " ", "GEMINI_API_KEY": "other"}
    assert resolve("gemini", key=None, data=DATA, environ=environ).key == "other"
    environ = {"GOOGLE_API_KEY": "one", "GEMINI_API_KEY": "other"}
    assert resolve("gemini", key="mine", data=DATA, environ=environ).key == "mine"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_the_warning_is_the_callers(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the line that made the client, so that it is shown once for each."""
    monkeypatch.setenv("GOOGLE_API_KEY", "canary-one")
    monkeypatch.setenv("GEMINI_API_KEY", "canary-two")
    with pytest.warns(UserWarning, match="pass api_key=") as told:
        kind("gemini")
    assert told[0].filename == __file__
    assert "canary" not in str(told[0].message)


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ({}, "v1beta"),
        ({"GOOGLE_GENAI_API_VERSION": "v1"}, "v1"),
        ({"GOOGLE_GENAI_API_VERSION": "beta"}, "v1beta"),
    ],
)
def test_the_version_is_googles_variable(said: dict[str, str], version: str) -> None:
    """Every path begins with it, uploads too."""
    found = resolve("gemini", key="mine", data=DATA, environ=said)
    assert found.provider.status("batches/b").call.path == f"/{version}/batches/b"
    assert found.provider.name == "gemini"


def test_the_address_is_googles_variable() -> None:
    """What the caller gives comes before it."""
    said = {"GOOGLE_GEMINI_BASE_URL": " https://gateway/google/ "}
    assert resolve("gemini", key="mine", data=DATA, environ=said).url == "https://gateway/google"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GOOGLE_GEMINI_BASE_URL", "gateway"),
        ("GOOGLE_GEMINI_BASE_URL", "ftp://gateway"),
        ("GOOGLE_GENAI_API_VERSION", "../v1"),
        ("GOOGLE_API_KEY", "a\nb"),
    ],
)
def test_a_variable_that_cannot_be_is_named(name: str, value: str) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidArgument, match=name) as refused:
        resolve("gemini", key=None, data=DATA, environ={"GEMINI_API_KEY": "mine", name: value})
    assert refused.value.field == name


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_the_guides_word_selects_the_target(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone or beside the target that it means; what it contradicts is refused, `local` too."""
    monkeypatch.setenv("GOOGLE_API_KEY", "mine")
    for options in ({}, {"target": "gemini"}):
        assert "generativelanguage" in repr(kind(**options, auth="gemini"))
    assert named(UNSAID, "vertex_ai") == named("vertex", "vertex_ai") == "vertex"
    for wrong in (
        {"target": "local", "auth": "gemini"},
        {"target": "http://host", "auth": "vertex_ai"},
        {"target": "gemini", "auth": "vertex_ai"},
        {"auth": "vertex"},
        {"auth": ""},
        {"auth": 5},
    ):
        with pytest.raises(InvalidArgument, match="auth") as refused:
            kind(**wrong)
        assert refused.value.field == "auth"


def test_gemini_without_a_key_says_where_to_put_one() -> None:
    """The error names both variables and the argument."""
    with pytest.raises(Unauthenticated, match="GOOGLE_API_KEY or GEMINI_API_KEY, or pass api_key="):
        resolve("gemini", key=None, data=DATA, environ={})


def test_a_key_never_shows() -> None:
    """Neither the target nor anything that prints it shows the key."""
    assert "secret" not in repr(resolve("gemini", key="secret", data=DATA, environ={}))


def test_a_service_needs_no_key_and_takes_none_from_the_environment() -> None:
    """Google's key must not travel to somebody else's service."""
    found = resolve("http://host:8080/", key=None, data=DATA, environ={"GOOGLE_API_KEY": "google"})
    assert (found.url, found.key, found.provider, found.socket, found.data) == (
        "http://host:8080",
        None,
        EMBATCH,
        None,
        None,
    )
    assert resolve("https://host/behind/a/proxy", key=None, data=DATA, environ={}).at("/v1/x") == (
        "https://host/behind/a/proxy/v1/x"
    )


def test_a_service_of_ones_own_has_a_variable_of_its_own() -> None:
    """What the caller gives comes first; neither Google nor a private service is shown it."""
    environ = {"EMBATCH_API_KEY": " embatch-1\n", "GOOGLE_API_KEY": "google"}
    for name in ("http://host:8080", "https://host", "unix:/run/embatch.sock"):
        assert resolve(name, key=None, data=DATA, environ=environ).key == "embatch-1"
        assert resolve(name, key="mine", data=DATA, environ=environ).key == "mine"
    assert resolve("local", key=None, data=DATA, environ=environ).key is None
    assert resolve("gemini", key=None, data=DATA, environ=environ).key == "google"
    with pytest.raises(InvalidArgument, match="EMBATCH_API_KEY holds characters that no key has"):
        resolve("http://host", key=None, data=DATA, environ={"EMBATCH_API_KEY": "a\nb"})


def test_local_and_sockets() -> None:
    """Both are reached through a socket; only the local one has a data folder to start a service in."""
    assert resolve("local", key=None, data=DATA, environ={}).data == DATA
    found = resolve("unix:/run/embatch.sock", key=None, data=DATA, environ={})
    assert (found.socket, found.data) == (Path("/run/embatch.sock"), None)
    assert resolve("unix:///run/embatch.sock", key=None, data=DATA, environ={}).socket == found.socket


@pytest.mark.parametrize(
    "name",
    [
        *("", "Local", "Vertex", "host:8080", "http://", "ftp://host", "unix:relative", "http://host/?x=1"),
        *("http://[", "http://[::1", "http://host:99999", "http://host:0", "http://host:port"),
        *("http://ho st", "http://host\n", "http://host\0", "http://\x1b[31m", "unix:/a\0b"),
    ],
)
def test_what_is_no_target_is_refused_with_those_that_are(name: str) -> None:
    """The error lists the forms a target can have."""
    with pytest.raises(InvalidArgument, match=r"unix:/run/embatch\.sock") as refused:
        resolve(name, key=None, data=DATA, environ={})
    assert refused.value.field == "target"


def test_a_key_that_no_header_can_hold_is_refused_and_not_shown() -> None:
    """Blanks around it, as a file has them, are no part of it."""
    for target in ("local", "http://host", "unix:/run/embatch.sock", "gemini"):
        found = resolve(target, key=" sk-secret\n", data=DATA, environ={"GOOGLE_API_KEY": "sk-secret\n"})
        assert found.headers == {"x-goog-api-key": "sk-secret"}
        for key in ("sk\u2603secret", "sk\nsecret", "sk\0secret"):
            with pytest.raises(InvalidArgument, match="api_key") as refused:
                resolve(target, key=key, data=DATA, environ={})
            assert "secret" not in str(refused.value)
