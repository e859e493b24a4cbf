"""What kvdemo asks of a KV backend: what it starts, what its engines get, and how its answers are read. Pure.

A backend never asks anything itself: planning starts what it names, fleet and bench send the requests that it names and
hand it the answers. What a backend does not tell stays unknown; the defaults here say so, and a run then proves what
the engines' own counters prove.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from kvdemo.backends.series import Chart, Line

NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True)
class Server:
    """What a profile and a plan say of one cache server.

    Its ``engines`` engines reach it on ``inner`` and ``port``, everybody over HTTP on ``host`` and ``http_port``.
    ``l1`` are bytes, ``chunk_size`` tokens; ``store`` is L2 (a directory, ``redis://HOST:PORT``, or empty) and
    ``adapter`` what the profile says of it. ``version`` is that of the backend's package, empty if nobody knows;
    ``node`` tells the servers of several nodes apart that use one directory. ``more`` are the ports that the backend
    asks for besides (``more_ports``).
    """

    host: str
    inner: str
    port: int
    http_port: int
    l1: int
    chunk_size: int
    engines: int
    on_gpu: bool
    store: str = ""
    adapter: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""
    node: str = ""
    more: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Address:
    """Where an engine finds its cache server, and what tells this engine and its KV from others.

    ``chunk_size`` are tokens, ``l1`` bytes, ``store`` and ``adapter`` are those of ``Server``. ``own_port`` is that of
    the engine's own API, ``sockets`` the private directory of its project, ``fingerprint`` that of what makes its KV
    right for others: weights, numeric flags and versions.
    """

    host: str
    port: int
    chunk_size: int = 256
    l1: int = 0
    store: str = ""
    adapter: Mapping[str, Any] = field(default_factory=dict)
    own_port: int = 0
    sockets: str = "/tmp"
    fingerprint: str = ""


@dataclass(frozen=True)
class Wiring:
    """What an engine of a cache gets on top of what every engine gets: flags of `vllm serve`, and variables.

    ``files`` are texts by their paths, which must be there before it starts.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Losses:
    """What a cache server counted while tokens went missing; None where it does not tell.

    ``strange``: it did not know the engine that asked. ``evictions``, ``refusals`` (L1 was full) and ``unreadable`` (in
    L2) are chunks, ``matched`` the tokens that its lookup hit.
    """

    strange: bool = False
    evictions: int = 0
    refusals: int = 0
    unreadable: int = 0
    matched: int | None = None


@dataclass(frozen=True)
class Lookups:
    """Tokens that a cache server was asked for since its start, and those of them that it had."""

    requested: float
    hit: float


@dataclass(frozen=True)
class Usage:
    """How full a cache server is, in bytes, and how many engines have registered; None where it does not tell.

    ``l2`` is what the server knows of, which may be less than what lies there; ``has_l2`` whether it has an L2 at all.
    """

    l1: int | None = None
    l1_size: int | None = None
    has_l2: bool | None = None
    l2: int | None = None
    engines: int | None = None


READ = "kvdemo reads from it where the tokens of an answer came from; leave this flag out"


@dataclass(frozen=True)
class Refusal:
    """Why a profile must not set a flag of a server, unless to one of the ``allowed`` values (null: it is left out)."""

    text: str
    allowed: tuple[Any, ...] = (None,)

    def holds(self, value: Any) -> bool:
        """Whether this value is refused."""
        return value not in self.allowed and str(value) not in self.allowed


class Backend(ABC):
    """One way to carry KV between engines.

    ``counters`` are a server's or an engine's Prometheus samples by name, without prefix and ``_total``
    (``host.health.counters``); ``report`` is the JSON document that it answers at ``report_path``, empty if none came.
    """

    kind: ClassVar[str]
    """Its name in a profile: ``caches.NAME.kind``."""
    title: ClassVar[str]
    """Its name for people."""
    command: ClassVar[tuple[str, ...]]
    """The words that start its server, after the interpreter."""
    package: ClassVar[str]
    """The Python package that holds it."""
    install: ClassVar[str] = "run scripts/setup, or set runtime.python to an interpreter that has it"
    """What to do where that package is missing."""
    connector: ClassVar[str]
    """Its connector by vLLM's name."""
    parts: ClassVar[tuple[str, ...]] = ()
    """Compiled modules of the package that every engine of it loads, whatever it computes on."""
    chunk_size: ClassVar[int] = 256
    """Its own default, in tokens."""
    gpu_bytes: ClassVar[int] = 0
    """GPU memory of one server on each GPU that it sees."""
    engine_bytes: ClassVar[int] = 0
    """Host memory that each of its engines takes for copies."""
    more_ports: ClassVar[tuple[str, ...]] = ()
    """Names of ports that its server binds besides that for engines and that for HTTP, on the address for engines."""
    lacks: ClassVar[Mapping[str, str]] = {}
    """Keys of a cache that mean nothing to it, and why."""
    serves: ClassVar[bool] = True
    """Whether it has a process of its own; else engines do everything, and nothing is started for the cache."""
    private_l1: ClassVar[bool] = False
    """Whether each engine takes L1 for itself."""
    needs_gpu: ClassVar[str] = ""
    """Why its engines cannot do without GPUs; empty if they can."""
    needs_l2: ClassVar[str] = ""
    """Why it needs L2; empty if it does not."""
    l2_server: ClassVar[str] = ""
    """Why its L2 can be no Redis or Valkey server; empty if it can."""
    one_machine: ClassVar[bool] = False
    """Whether it serves the engines of one machine only, started by kvdemo: no cluster, no export but Slurm's."""
    exposed: ClassVar[str] = ""
    """How it can be reached from other machines whatever `host` says; empty if it cannot."""
    chunk_is_block: ClassVar[bool] = False
    """Whether its chunk is the engine's own KV block, so that the two cannot differ, and only whole ones are loaded."""
    own_flags: ClassVar[Mapping[str, str]] = {}
    """Flags of its server that a key of the cache decides, and that key."""
    refused_flags: ClassVar[Mapping[str, Refusal]] = {}
    """Flags of its server that nothing may set otherwise than kvdemo does."""
    own_variables: ClassVar[Mapping[str, str]] = {}
    """Variables that a key decides, and that key."""
    refused_variables: ClassVar[Mapping[str, str]] = {}
    """Variables that no profile may set, and why."""
    server_variables: ClassVar[Mapping[str, str]] = {}
    """Variables of its server, which the profile's ``env`` may replace."""
    quiet: ClassVar[Mapping[str, str]] = {}
    """Variables that switch its telemetry and banners off, in whatever process imports it."""
    secrets: ClassVar[tuple[str, ...]] = ()
    """How the names of secrets begin that are for its server, and for no engine."""
    prefixes: ClassVar[tuple[str, ...]] = ()
    """How the names of its Prometheus series begin, up to the separator after which its own names follow."""
    health_path: ClassVar[str] = "/health"
    """Answers 200 once the server works."""
    report_path: ClassVar[str] = "/status"
    """Answers with the server's report."""
    clear_path: ClassVar[str] = ""
    """A POST here empties L1; empty if nothing does."""
    chunk_files: ClassVar[str] = ""
    """A glob pattern for the chunks of all models in the directory of a cache that has no server; empty: unknown."""
    pools: ClassVar[tuple[str, ...]] = ()
    """How the names in /dev/shm begin in which an engine, its process ``{pid}``, offers its KV memory."""
    registers: ClassVar[bool] = False
    """Whether an engine must have registered with the server before it can share."""
    lookup: ClassVar[Line | None] = None
    """The seconds that an engine spends on asking the cache: a histogram of the engine's, if there is one."""
    charts: ClassVar[tuple[Chart, ...]] = ()
    """What of its server's series, or of its engines', shows where tokens came from, and why some are missing."""
    user: ClassVar[str] = ""
    """The variable that holds the name for an L2 server; empty if there is none."""
    password: ClassVar[str] = ""
    """The variable that holds the password for an L2 server; empty if there is none."""

    def options(self, server: Server) -> dict[str, Any]:
        """The flags of this server, which the profile's ``args`` may replace; none where there is no server."""
        del server
        return {}

    @abstractmethod
    def wiring(self, server: Address) -> Wiring:
        """What an engine gets that is to find this server."""

    def transfer(self, **extra: Any) -> dict[str, Any]:
        """The flag of `vllm serve` for this connector and its own fields; a block that cannot be loaded is computed."""
        policy = {"kv_role": "kv_both", "kv_load_failure_policy": "recompute"}
        config = {"kv_connector": self.connector, **policy, "kv_connector_extra_config": extra}
        return {"kv-transfer-config": config}

    def in_container(
        self, options: Mapping[str, Any], *, host: str = "", directory: str = "", adapter: Mapping[str, str] = NOTHING
    ) -> dict[str, Any]:
        """The same flags in a container: an engine's whose server is at ``host``, or a server's own.

        A server keeps L2 in ``directory``, if it has one; ``adapter`` is what an export adds to L2's fields.
        """
        del host, directory, adapter
        return dict(options)

    def reusable(self, tokens: int, chunk: int) -> int:
        """How many tokens of a stored prompt another engine can load: whole chunks, but never the last token.

        vLLM computes at least one token of every prompt, so of a prompt of whole chunks all but that one are loaded, or
        where a chunk is a block, one block less.
        """
        if self.chunk_is_block:
            return max(0, tokens - 1) // chunk * chunk
        whole = tokens // chunk * chunk
        return whole - 1 if whole == tokens else whole

    def share_kept(self, flags: Mapping[str, Any]) -> float:
        """The share of L1 that holds KV on average once it is full; ``flags`` are the server's own."""
        del flags
        return 1.0

    def fingerprint(self, adapter: Mapping[str, Any]) -> dict[str, Any]:
        """What makes KV in L2 another one although its key is the same, beside model, flags and versions."""
        del adapter
        return {}

    def files(self, salts: str) -> str:
        """A glob pattern for the files in L2 of requests whose salt matches this one; empty: unknown."""
        del salts
        return ""

    def keys(self, salts: str) -> str:
        """The same for the keys in an L2 that is a Redis or Valkey server."""
        del salts
        return ""

    def keys_of_model(self, model: str) -> str:
        """A pattern for the keys of this model, whose name is escaped, in an L2 that is a Redis or Valkey server."""
        del model
        return ""

    def reported_chunk_size(self, report: Mapping[str, Any]) -> int | None:
        """Tokens a chunk by the server's own report."""
        del report
        return None

    def usable(self, counters: Mapping[str, float]) -> bool:
        """Whether a server that answers can already store."""
        del counters
        return True

    def registered(self, report: Mapping[str, Any]) -> int | None:
        """How many engines have offered it their KV memory."""
        del report
        return None

    def kv_bytes_per_token(self, report: Mapping[str, Any]) -> int | None:
        """KV bytes a token by the server's own account, all ranks together."""
        del report
        return None

    def objects(self, report: Mapping[str, Any]) -> int:
        """Chunks in L1."""
        del report
        return 0

    def chunks_written(self, before: Mapping[str, float], after: Mapping[str, float]) -> int:
        """Chunks that came into L1 between two readings of the server's counters."""
        del before, after
        return 0

    def pending(self, counters: Mapping[str, float]) -> float:
        """Stores in hand."""
        del counters
        return 0

    def tiers(self, before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, int] | None:
        """Tokens that the server's lookups hit in each tier (``l1``, ``l2``) between two readings."""
        del before, after
        return None

    def engine_tiers(self, before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, int] | None:
        """Tokens from each tier between two readings of the engine's own counters, where these tell."""
        del before, after
        return None

    def losses(self, since: Mapping[str, float], before: Mapping[str, float], after: Mapping[str, float]) -> Losses:
        """What was counted ``since`` the writer was asked, and from ``before`` to ``after`` the reader was."""
        del since, before, after
        return Losses()

    def lookups(self, counters: Mapping[str, float]) -> Lookups | None:
        """What it was asked for and had since its start."""
        del counters
        return None

    def lookup_requests(self, before: Mapping[str, float], after: Mapping[str, float]) -> int | None:
        """How many requests of engines it looked up between two readings."""
        del before, after
        return None

    def usage(self, counters: Mapping[str, float], report: Mapping[str, Any]) -> Usage:
        """How full it is."""
        del counters
        return Usage(engines=self.registered(report))


def share_kept(flags: Mapping[str, Any], watermark_flag: str, watermark: float, part: float) -> float:
    """Of a cache that evicts from a watermark on, a ``part`` of what it holds at once, what it holds on average."""
    numbers = {name: value for name, value in flags.items() if isinstance(value, int | float)}
    return float(numbers.get(watermark_flag, watermark) * (1 - numbers.get("eviction-ratio", part) / 2))
