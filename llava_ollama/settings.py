"""What the user set: the one place that reads the environment.

A flag beats the environment, the environment beats the default. The result is frozen and handed
down; nothing below looks at the environment again.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llava_ollama.errors import UsageProblem

VARIABLES: Mapping[str, str] = {
    "OLLAMA_HOST": "address of the Ollama daemon, in every form that Ollama accepts",
    "LLAVA_OLLAMA_CATALOG": "a catalog file of your own, added to the one that is shipped",
    "LLAVA_OLLAMA_CACHE": "folder for downloads",
    "LLAVA_OLLAMA_STATE": "folder for what must survive a kill: names that an install made",
    "LLAVA_OLLAMA_TIMEOUT": "seconds to wait for the daemon's next word, loading included",
}
"""Every variable that is read here, and what it is for; the README's table is made from this."""

DEFAULT_TIMEOUT = 600.0
"""Long, since a daemon loads a model before its first word and gives up loading on a hang-up."""
_DEFAULT_PORTS = {"http": 80, "https": 443}
_OLLAMA_PORT = 11434
_LAST_PORT = 65535


@dataclass(frozen=True)
class Settings:
    """Where things are and how long to wait."""

    host: str
    """The daemon's base URL, ready to connect to."""
    catalog: Path | None
    cache: Path
    state: Path
    timeout: float = DEFAULT_TIMEOUT

    @classmethod
    def read(
        cls, *, host: str | None = None, environment: Mapping[str, str] = os.environ
    ) -> Settings:
        """Build the settings from flags and the environment.

        Raises:
            UsageProblem: a value cannot be meant; the message names the variable.
        """
        get = environment.get
        own_catalog = get("LLAVA_OLLAMA_CATALOG")
        catalog = (
            Path(own_catalog) if own_catalog else _folder("config", environment) / "catalog.toml"
        )
        return cls(
            host=parse_host(host, "--host") if host else parse_host(get("OLLAMA_HOST", "")),
            catalog=catalog if own_catalog or catalog.is_file() else None,
            cache=Path(get("LLAVA_OLLAMA_CACHE") or _folder("cache", environment)),
            state=Path(get("LLAVA_OLLAMA_STATE") or _folder("state", environment)),
            timeout=_seconds(get("LLAVA_OLLAMA_TIMEOUT"), "LLAVA_OLLAMA_TIMEOUT"),
        )


def parse_host(text: str, origin: str = "OLLAMA_HOST") -> str:
    """Return the URL to connect to for an `OLLAMA_HOST`, read as Ollama itself reads it.

    `[scheme://]host[:port][/path]`, with spaces and quotes around it; IPv6 with or without
    brackets; 0.0.0.0 and :: are addresses to listen on, so a client takes the loopback address.
    Stricter than Ollama in one thing: it warns of a bad port and talks to another, this raises.

    Raises:
        UsageProblem: no address can be made of it.
    """
    value = text.strip().strip("\"'").strip()
    scheme, separator, rest = value.partition("://")
    if not separator:
        scheme, rest = "http", value
        if value == "ollama.com":
            scheme, rest = "https", "ollama.com:443"
    default = _DEFAULT_PORTS.get(scheme, _OLLAMA_PORT) if separator else _OLLAMA_PORT
    if scheme not in _DEFAULT_PORTS:
        raise _bad_host(text, origin, f"`{scheme}` is neither http nor https")
    where, _, path = rest.partition("/")
    name, port = _split_port(where)
    if port is not None and not (port.isascii() and port.isdigit() and int(port) <= _LAST_PORT):
        raise _bad_host(text, origin, f"`{port}` is not a port")
    name = _connectable(name or "127.0.0.1")
    if not name or any(
        c.isspace() or c in "@?#\\[]" or not c.isprintable() for c in name.strip("[]")
    ):
        raise _bad_host(text, origin, f"`{name}` is not a host name")
    url = f"{scheme}://{name}:{port or default}"
    return f"{url}/{path.rstrip('/')}" if path.rstrip("/") else url


def is_loopback(url: str) -> bool:
    """Whether `url` (of `parse_host`) is on this machine, where no proxy has any business."""
    name = url.partition("://")[2].partition("/")[0].rpartition(":")[0].strip("[]")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _split_port(where: str) -> tuple[str, str | None]:
    """Split `host:port`; a bare IPv6 address has colons but no port."""
    if _is_ip(where.strip("[]")):
        return where.strip("[]"), None
    name, colon, port = where.rpartition(":")
    return (name.strip("[]"), port) if colon else (where, None)


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _connectable(name: str) -> str:
    if not _is_ip(name):
        return name
    address = ipaddress.ip_address(name)
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")  # noqa: PLR2004 - IPv4
    return str(address) if address.version == 4 else f"[{address}]"  # noqa: PLR2004 - IPv4


def _bad_host(text: str, origin: str, why: str) -> UsageProblem:
    return UsageProblem(
        f"`{text}` in {origin} is not the address of a daemon: {why}",
        hint="Write it as `host`, `host:port` or `http://host:port`",
    )


def _seconds(text: str | None, origin: str) -> float:
    if not text:
        return DEFAULT_TIMEOUT
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageProblem(
            f"`{text}` in {origin} is not a number of seconds", hint=f"Try `{origin}=600`"
        )
    return value


def _folder(kind: str, environment: Mapping[str, str]) -> Path:
    """Return the platform's folder for this program's `config`, `cache` or `state`."""
    home = Path(environment.get("HOME") or Path.home())
    if sys.platform == "darwin":
        base = home / "Library" / ("Caches" if kind == "cache" else "Application Support")
    elif sys.platform == "win32":
        base = Path(environment.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        default = {"config": ".config", "cache": ".cache", "state": ".local/state"}[kind]
        base = Path(environment.get(f"XDG_{kind.upper()}_HOME") or home / default)
    return base / "llava-ollama"
