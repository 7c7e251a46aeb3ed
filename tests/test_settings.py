"""Settings: every form of OLLAMA_HOST that Ollama accepts, what beats what, and the folders."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llava_ollama.daemon import Daemon
from llava_ollama.errors import DaemonUnreachable, UsageProblem
from llava_ollama.settings import (
    DEFAULT_TIMEOUT,
    Settings,
    is_loopback,
    parse_host,
    same_daemon_key,
)

# The first part is the table of Ollama's own test (envconfig/config_test.go, TestHost and
# TestConnectableHost), with the port that a URL of `:1234` means.
ACCEPTED = {
    "": "http://127.0.0.1:11434",
    "1.2.3.4": "http://1.2.3.4:11434",
    ":1234": "http://127.0.0.1:1234",
    "1.2.3.4:1234": "http://1.2.3.4:1234",
    "example.com": "http://example.com:11434",
    "example.com:1234": "http://example.com:1234",
    ":0": "http://127.0.0.1:0",
    "[::1]": "http://[::1]:11434",
    "[::]": "http://[::1]:11434",
    "::1": "http://[::1]:11434",
    "[::1]:1337": "http://[::1]:1337",
    " 1.2.3.4 ": "http://1.2.3.4:11434",
    '"1.2.3.4"': "http://1.2.3.4:11434",
    ' " 1.2.3.4 " ': "http://1.2.3.4:11434",
    "'1.2.3.4'": "http://1.2.3.4:11434",
    "http://1.2.3.4": "http://1.2.3.4:80",
    "http://1.2.3.4:4321": "http://1.2.3.4:4321",
    "https://1.2.3.4": "https://1.2.3.4:443",
    "https://1.2.3.4:4321": "https://1.2.3.4:4321",
    "https://example.com/ollama": "https://example.com:443/ollama",
    "ollama.com": "https://ollama.com:443",
    "127.0.0.1": "http://127.0.0.1:11434",
    "0.0.0.0": "http://127.0.0.1:11434",
    "0.0.0.0:1234": "http://127.0.0.1:1234",
    "[::]:1234": "http://[::1]:1234",
    "192.168.1.5:8080": "http://192.168.1.5:8080",
    # And what its code takes besides.
    "::": "http://[::1]:11434",
    "[::1": "http://[::1]:11434",
    "ollama.com:443": "http://ollama.com:443",
    "http://ollama.com": "http://ollama.com:80",
    "http://": "http://127.0.0.1:80",
    "https://": "https://127.0.0.1:443",
    "/prefix": "http://127.0.0.1:11434/prefix",
    "example.com:": "http://example.com:11434",
    "[1.2.3.4]:80": "http://1.2.3.4:80",
    "[localhost]:1234": "http://localhost:1234",
    "LocalHost": "http://LocalHost:11434",
    "my_box-1.local.": "http://my_box-1.local.:11434",
    "bücher.example": "http://bücher.example:11434",
    "::ffff:127.0.0.1": "http://127.0.0.1:11434",
    "[::ffff:0.0.0.0]:99": "http://127.0.0.1:99",
    "2001:DB8:0:0::1": "http://[2001:db8::1]:11434",
    "[fe80::1%eth0]:1234": "http://[fe80::1%eth0]:1234",
    "1.2.3.4:00080": "http://1.2.3.4:80",
    "http://h/a/b/": "http://h:80/a/b",
    "http://h//a//": "http://h:80/a",
    "http://h/a b?c#d%e": "http://h:80/a%20b%3Fc%23d%25e",
    "\t'http://h:1'\n": "http://h:1",
}

# Ollama only warns of the ports and takes its default, and fails later with the others.
REFUSED = {
    ":66000": "66000",
    ":-1": "-1",
    ":+80": "+80",
    "h:port": "port",
    "h:" + "9" * 5000: "not a port",
    "h:٤٢": "not a port",
    "h:80?x=1": "not a port",
    "ftp://h": "ftp",
    "HTTP://h": "HTTP",
    "://h": "neither",
    "http:/h": "not a host name",
    "http://http://h": "not a host name",
    "https:": "not a host name",
    "a b": "not a host name",
    "a\nb": "not a host name",
    "user:secret@h": "have no place",
    "user@h:1": "have no place",
    "a:b:80": "not a host name",
    "[localhost]": "not a host name",
    "[::1]x": "not a port",
    "*": "not a host name",
    "http://h?x": "not a host name",
    "h\\x": "not a host name",
    "h\x00": "not a host name",
    "h\u200b": "not a host name",
}


@pytest.mark.parametrize(("text", "url"), ACCEPTED.items(), ids=repr)
def test_a_host_is_read_as_ollama_reads_it(text, url):
    import httpx

    assert parse_host(text) == url
    assert httpx.URL(url).host
    assert parse_host(url) == url or "%" in url, "a URL of ours means itself"


@pytest.mark.parametrize(("text", "why"), REFUSED.items(), ids=lambda text: repr(text)[:20])
def test_a_host_that_cannot_be_meant_is_refused(text, why):
    with pytest.raises(UsageProblem) as caught:
        parse_host(text, "--host")
    assert why in caught.value.message
    assert "--host" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "here"),
    {
        "": True,
        "localhost": True,
        "LOCALHOST.": True,
        "ollama.localhost:1": True,
        "127.8.9.1": True,
        "0.0.0.0": True,
        "::": True,
        "[::1]:5/x": True,
        "::ffff:127.0.0.1": True,
        "https://localhost/x:y": True,
        "notlocalhost": False,
        "localhost.example.com": False,
        "192.168.1.5": False,
        "2001:db8::1": False,
        "ollama.com": False,
    }.items(),
)
def test_loopback_is_known_in_every_form(text, here):
    assert is_loopback(parse_host(text)) is here


@pytest.mark.parametrize(
    "text",
    [
        "http://user:s3cret@h",
        "user:s3cret@h:1",
        "http://s3cret@h",
        "https://u:s3c/s3cret@h",
        "s3cret@",
    ],
)
def test_a_password_is_not_shown(text):
    with pytest.raises(UsageProblem, match="password have no place") as caught:
        parse_host(text, "--host")
    assert "s3c" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "::1", "LocalHost", "0.0.0.0", "[::]"])
def test_this_machine_s_names_are_one_daemon(name):
    url = parse_host(f"http://[{name.strip('[]')}]:1234/x" if ":" in name else f"{name}:1234/x")
    assert same_daemon_key(url) == "http://127.0.0.1:1234/x"
    assert same_daemon_key("http://localhost.example:1") == "http://localhost.example:1"
    assert same_daemon_key("what") == "what"


def test_a_relative_path_in_a_folder_that_is_gone(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    code = (
        "import os, sys; from llava_ollama.settings import Settings; "
        "from llava_ollama.errors import UsageProblem\n"
        "os.rmdir(os.getcwd())\n"
        "try: Settings.read(environment={'LLAVA_OLLAMA_STATE': 'state', 'HOME': '/h'})\n"
        "except UsageProblem as exc: print(exc)"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        cwd=gone,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "`state` is a relative path" in done.stdout, done.stderr


def test_no_proxy_is_asked_on_the_way_to_loopback(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        asked = threading.Event()

        def listen() -> None:
            try:
                proxy.accept()[0].close()
                asked.set()
            except OSError:
                return

        threading.Thread(target=listen, daemon=True).start()
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        client = Daemon(parse_host(f"127.0.0.1:{port}"))
        with pytest.raises(DaemonUnreachable):
            client.version()
        client.close()
        assert not asked.is_set()


def read(platform: str = "linux", host: str | None = None, **environment: str) -> Settings:
    return Settings.read(
        host=host, environment={"HOME": "/home/me", **environment}, platform=platform
    )


def test_a_flag_beats_the_environment_and_that_beats_the_default():
    assert read().host == "http://127.0.0.1:11434"
    assert read(OLLAMA_HOST="a:1").host == "http://a:1"
    assert read(OLLAMA_HOST="a:1", host="b:2").host == "http://b:2"
    assert read(OLLAMA_HOST=":bad", host="b:2").host == "http://b:2"


def test_a_bad_variable_is_named():
    settings = read(OLLAMA_HOST=":bad")  # what needs no daemon goes on
    with pytest.raises(UsageProblem, match="OLLAMA_HOST"):
        _ = settings.host
    for text in ("soon", "0", "-1", "nan", "inf", "1e300", " "):
        with pytest.raises(UsageProblem, match="LLAVA_OLLAMA_TIMEOUT"):
            read(LLAVA_OLLAMA_TIMEOUT=text)


def test_the_timeout_is_in_seconds():
    assert read().timeout == DEFAULT_TIMEOUT
    assert read(LLAVA_OLLAMA_TIMEOUT="").timeout == DEFAULT_TIMEOUT
    assert read(LLAVA_OLLAMA_TIMEOUT="1.5").timeout == 1.5


@pytest.mark.parametrize(
    ("platform", "environment", "cache", "state"),
    [
        ("linux", {}, "/home/me/.cache", "/home/me/.local/state"),
        ("linux", {"XDG_CACHE_HOME": "/c", "XDG_STATE_HOME": "/s"}, "/c", "/s"),
        ("linux", {"XDG_CACHE_HOME": "c"}, "/home/me/.cache", "/home/me/.local/state"),
        ("darwin", {}, "/home/me/Library/Caches", "/home/me/Library/Application Support"),
        ("win32", {"LOCALAPPDATA": "/l"}, "/l", "/l"),
        ("win32", {}, "/home/me/AppData/Local", "/home/me/AppData/Local"),
    ],
)
def test_folders_are_where_the_platform_has_them(platform, environment, cache, state):
    settings = read(platform, **environment)
    assert settings.cache == Path(cache) / "llava-ollama"
    assert settings.state == Path(state) / "llava-ollama"
    assert settings.catalog is None


def test_folders_of_the_users_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = read(LLAVA_OLLAMA_CACHE="~/c", LLAVA_OLLAMA_STATE="s", XDG_CACHE_HOME="/c")
    assert settings.cache == Path("/home/me/c")
    assert settings.state == tmp_path / "s"


def test_the_catalog_of_the_configuration_folder_counts_where_it_is_there(tmp_path):
    folder = tmp_path / "llava-ollama"
    assert read(XDG_CONFIG_HOME=str(tmp_path)).catalog is None
    folder.mkdir()
    (folder / "catalog.toml").touch()
    assert read(XDG_CONFIG_HOME=str(tmp_path)).catalog == folder / "catalog.toml"
    own = str(tmp_path / "missing.toml")
    named = read(XDG_CONFIG_HOME=str(tmp_path), LLAVA_OLLAMA_CATALOG=own)
    assert named.catalog == Path(own), "one that is named counts, so that its absence is told"


def test_the_registry_and_what_speaks_against_it():
    assert Settings.read(environment={}).registry == "https://registry.ollama.ai"
    own = Settings.read(environment={"LLAVA_OLLAMA_REGISTRY": "http://127.0.0.1:5000/"})
    assert own.registry == "http://127.0.0.1:5000"
    for text in ("registry.ollama.ai", "ftp://h", "https://h/path"):
        with pytest.raises(UsageProblem, match="LLAVA_OLLAMA_REGISTRY"):
            Settings.read(environment={"LLAVA_OLLAMA_REGISTRY": text})
    for name, value in {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "yes"}.items():
        assert Settings.read(environment={name: value}).no_pull == f"`{name}` is set"
        assert Settings.read(environment={name: "0"}).no_pull is None
    assert "mirror" in str(Settings.read(environment={"HF_ENDPOINT": "https://h"}).no_pull)
