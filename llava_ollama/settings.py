"""What the user set: the one place that reads the environment.

A flag beats the environment, the environment beats the default. The result is frozen and handed
down; nothing below looks at the environment again.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llava_ollama.errors import UsageProblem

VARIABLES: Mapping[str, str] = {
    "OLLAMA_HOST": "address of the Ollama daemon, in every form that Ollama accepts",
    "OLLAMA_MODELS": "the daemon's models folder; looked at first for a store to link into",
    "LLAVA_OLLAMA_CATALOG": "a catalog file of your own, added to the one that is shipped",
    "LLAVA_OLLAMA_CACHE": "folder for downloads",
    "LLAVA_OLLAMA_STATE": "folder for what must survive a kill: names that an install made",
    "LLAVA_OLLAMA_REGISTRY": "the registry that a daemon is told to pull from",
    "LLAMA_API_KEY": "the key of the llama-server that is asked, if it has one",
    "LLAVA_OLLAMA_TIMEOUT": "seconds to wait for the daemon's next word, loading included (600)",
}
"""Every variable that is read here, and what it is for; the README's table is made from this."""

DEFAULT_REGISTRY = "https://registry.ollama.ai"
DEFAULT_TIMEOUT = 600.0
"""Long, since a daemon loads a model before its first word and gives up loading on a hang-up."""
_DEFAULT_PORTS = {"http": 80, "https": 443}
_OLLAMA_PORT = 11434
_LAST_PORT = 65535
_PORT = re.compile(r"[0-9]{0,5}", re.ASCII)
"""Five digits, since `int` itself raises for some thousands; none is the default port, as in Go."""
_NOT_IN_NAMES = frozenset("\"#%&'()*+,/:;<=>?@[\\]^`{|}$! ")
_PLAIN = "/:@&=+$,;!'()*~"
_LONGEST_TIMEOUT = 1e8
"""Three years; the system's own calls take no more than some thousand."""


@dataclass(frozen=True)
class Settings:
    """Where things are and how long to wait."""

    address: str
    """The daemon's address as it was given."""
    origin: str
    """Where it was given: `--host` or `OLLAMA_HOST`."""
    catalog: Path | None
    cache: Path
    state: Path
    timeout: float = DEFAULT_TIMEOUT
    models: tuple[Path, ...] = ()
    """Folders that may be the daemon's store, the likeliest first; `store.find` tells which is."""
    registry: str = DEFAULT_REGISTRY
    """Where the daemon is told to pull from: Ollama's public library, or a copy of it."""
    no_pull: str | None = None
    """Why no daemon is to pull unasked: the user has said where downloads come from."""
    api_key: str | None = field(default=None, repr=False)
    """Of a llama-server."""

    @property
    def host(self) -> str:
        """The daemon's base URL, ready to connect to.

        Raises:
            UsageProblem: the address is none; whoever needs no daemon does not hear of it.
        """
        return parse_host(self.address, self.origin)

    @classmethod
    def read(
        cls,
        *,
        host: str | None = None,
        environment: Mapping[str, str] = os.environ,
        platform: str = sys.platform,
    ) -> Settings:
        """Build the settings from flags and the environment.

        Raises:
            UsageProblem: a value cannot be meant; the message names the variable.
        """
        get = environment.get

        def folder(kind: str) -> Path:
            own = get(f"LLAVA_OLLAMA_{kind.upper()}")
            return _path(own, environment) if own else _folder(kind, environment, platform)

        own_catalog = get("LLAVA_OLLAMA_CATALOG")
        catalog = (
            _path(own_catalog, environment)
            if own_catalog
            else _folder("config", environment, platform) / "catalog.toml"
        )
        return cls(
            address=host or get("OLLAMA_HOST", ""),
            origin="--host" if host else "OLLAMA_HOST",
            catalog=catalog if own_catalog or catalog.is_file() else None,
            cache=folder("cache"),
            state=folder("state"),
            timeout=_seconds(get("LLAVA_OLLAMA_TIMEOUT"), "LLAVA_OLLAMA_TIMEOUT"),
            models=tuple(_models(environment, platform)),
            registry=_registry(get("LLAVA_OLLAMA_REGISTRY")),
            no_pull=_no_pull(environment),
            api_key=get("LLAMA_API_KEY") or None,
        )


def parse_host(text: str, origin: str = "OLLAMA_HOST") -> str:
    """Return the URL to connect to for an `OLLAMA_HOST`, read as Ollama itself reads it.

    `[scheme://]host[:port][/path]`, with spaces and quotes around it; IPv6 with or without
    brackets; 0.0.0.0 and :: are addresses to listen on, so a client takes the loopback address.
    Stricter than Ollama where it only warns (a bad port: it goes on to another one) or goes on
    to fail (a scheme or host name that nothing can connect to).

    Raises:
        UsageProblem: no address can be made of it.
    """
    value = text.strip().strip("\"'").strip()
    scheme, separator, rest = value.partition("://")
    if not separator:
        scheme, rest = "http", value
        if value == "ollama.com":
            scheme, rest = "https", "ollama.com:443"
    if scheme not in _DEFAULT_PORTS:
        raise _bad_host(text, origin, f"`{scheme}` is neither http nor https")
    default = _DEFAULT_PORTS[scheme] if separator else _OLLAMA_PORT
    where, _, path = rest.partition("/")
    name, port = _split_port(where)
    if not _PORT.fullmatch(port) or int(port or 0) > _LAST_PORT:
        raise _bad_host(text, origin, f"`{port}` is not a port")
    host = _connectable(name or "127.0.0.1")
    if host is None or where in {"http:", "https:"}:  # `http:/h`
        raise _bad_host(text, origin, f"`{name}` is not a host name")
    return f"{scheme}://{host}:{int(port) if port else default}{_escaped(path)}"


def is_loopback(url: str) -> bool:
    """Whether `url` (of `parse_host`) is on this machine, where no proxy has any business."""
    name = url.partition("://")[2].partition("/")[0].rpartition(":")[0].strip("[]")
    address = _ip(name)
    if address is not None:
        return address.is_loopback
    return f".{name.lower().rstrip('.')}".endswith(".localhost")


def same_daemon_key(url: str) -> str:
    """Return `url` (of `parse_host`) in the form that one daemon's records are filed under.

    This machine has several names for itself, and one daemon behind each port.
    """
    scheme, separator, rest = url.partition("://")
    where, slash, path = rest.partition("/")
    name, colon, port = where.rpartition(":")
    if name.lower().rstrip(".") in {"localhost", "[::1]"}:
        name = "127.0.0.1"
    return f"{scheme}{separator}{name}{colon}{port}{slash}{path}"


def _split_port(where: str) -> tuple[str, str]:
    """Split `host:port`; a bare IPv6 address has colons but no port."""
    if _ip(where.strip("[]")) is not None:
        return where.strip("[]"), ""
    name, colon, port = where.rpartition(":")
    if not colon:
        return where, ""
    inner = name.removeprefix("[").removesuffix("]")
    return (inner if f"[{inner}]" == name else name), port


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if set("[]:") & set(text.partition("%")[2]):
        return None  # Python takes everything after `%` for the zone, `]:1234` as well
    # Go writes ::ffff:127.0.0.1 as 127.0.0.1, and so it is known as the loopback address.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _connectable(name: str) -> str | None:
    """Return `name` as it stands in a URL, or None when it is no host's name."""
    address = _ip(name)
    if address is None:
        return name if name.isprintable() and not set(name) & _NOT_IN_NAMES else None
    if isinstance(address, ipaddress.IPv4Address):
        return "127.0.0.1" if address.is_unspecified else str(address)
    return "[::1]" if address.is_unspecified else f"[{address}]"


def _escaped(path: str) -> str:
    """Return a path as it stands in a URL; as in Go, `%` is a per cent sign and no escape."""
    from urllib.parse import quote

    kept = "/".join(part for part in path.split("/") if part)
    return f"/{quote(kept, safe=_PLAIN)}" if kept else ""


def _bad_host(text: str, origin: str, why: str) -> UsageProblem:
    before, at, host = text.rpartition("@")
    if at:  # there may be a password before it, and so in `why`
        scheme, separator, _ = before.rpartition("://")
        text = f"{scheme}{separator}…@{host}"
        why = "a user and a password have no place in it"
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
    if not 0 < value <= _LONGEST_TIMEOUT:
        raise UsageProblem(
            f"`{text}` in {origin} is not a number of seconds", hint=f"Try `{origin}=600`"
        )
    return value


def _path(text: str, environment: Mapping[str, str]) -> Path:
    """Return the path that a variable names; `~` is the home folder, as in a shell."""
    path = Path(text)
    if path.parts[:1] == ("~",):
        path = _home(environment).joinpath(*path.parts[1:])
    try:
        return path.absolute()
    except OSError as exc:
        raise UsageProblem(
            f"`{text}` is a relative path, and the current folder is gone",
            hint="Write the whole path, or change to a folder that exists",
        ) from exc


def _models(environment: Mapping[str, str], platform: str) -> Iterator[Path]:
    """Yield where a daemon keeps its models: as it is told, as this user, as a service."""
    if own := environment.get("OLLAMA_MODELS"):
        yield _path(own, environment)
    yield _home(environment) / ".ollama" / "models"
    if platform not in {"darwin", "win32"}:  # the users of Ollama's installer and of distributions
        for home in ("/usr/share/ollama", "/var/lib/ollama"):
            yield Path(home) / ".ollama" / "models"
        yield Path("/var/lib/ollama/models")


def _registry(text: str | None) -> str:
    """Return the registry's URL without the slash at its end.

    Raises:
        UsageProblem: it is no URL.
    """
    if not text:
        return DEFAULT_REGISTRY
    if re.fullmatch(r"https?://[^/\s]+/*", text) is None:
        raise UsageProblem(
            f"`{text}` in LLAVA_OLLAMA_REGISTRY is not the address of a registry",
            hint=f"Write it as `{DEFAULT_REGISTRY}`",
        )
    return text.rstrip("/")


def _no_pull(environment: Mapping[str, str]) -> str | None:
    """Return why the public library is not asked, read as huggingface_hub reads its variables."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if environment.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}:
            return f"`{name}` is set"
    return "`HF_ENDPOINT` names a mirror" if environment.get("HF_ENDPOINT") else None


def _home(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("HOME") or Path.home())


def _folder(kind: str, environment: Mapping[str, str], platform: str) -> Path:
    """Return the platform's folder for this program's `config`, `cache` or `state`."""
    home = _home(environment)
    if platform == "darwin":
        base = home / "Library" / ("Caches" if kind == "cache" else "Application Support")
    elif platform == "win32":
        base = Path(environment.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        base = home / {"config": ".config", "cache": ".cache", "state": ".local/state"}[kind]
        # The XDG specification has relative paths ignored.
        if (own := environment.get(f"XDG_{kind.upper()}_HOME", "")).startswith("/"):
            base = Path(own)
    return base / "llava-ollama"
