"""How a server is set up: one frozen value, checked when it is made and passed on explicitly."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from rayml.cores import usable_cores
from rayml.errors import UsageError
from serving.addresses import check_host_pattern
from serving.limits import RequestLimits

# The engines that serve; the TensorFlow engine is a reference for tests and is never served.
ENGINES = ("auto", "openvino", "onnxruntime")
PRECISIONS = ("auto", "float32", "bfloat16", "int8")
_MAX_REPLICAS = 64
_MAX_THREADS = 256


@dataclass(frozen=True)
class ServeSettings:
    """Where a server listens and what it runs on.

    Arguments:
        host: the address on which the proxy listens; loopback unless said otherwise.
        port: its port, 1 to 65535.
        engine: one of `ENGINES`.
        precision: what it computes in, one of `PRECISIONS`; auto is what each bundle was made in, bfloat16 where the
            processor has it, and the bundle's golden pictures must come out well enough in any.
        replicas: processes that answer, or None for one: a replica infers on `threads` threads, and one
            process with all cores held 78 requests/s where two with half the cores each held 74 to 78.
        max_replicas: with it, Serve starts up to this many while the others are busy, and ends them when they are not.
        threads: threads of each replica, or None for the usable cores divided among the replicas.
        limits: what one request may cost.
        api_key_file: a file of API keys, one a line, of which each request must show one; None lets everybody in.
        allow_url_hosts: hosts from which pictures are fetched by URL; none means that no URL is.
        access_log: whether each request is logged on standard error, not only those that failed.
        model: which model of a folder of models, where it holds several.

    Raises:
        UsageError: a value out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    engine: str = "auto"
    precision: str = "auto"
    replicas: int | None = None
    max_replicas: int | None = None
    threads: int | None = None
    limits: RequestLimits = field(default_factory=RequestLimits)
    api_key_file: str | None = None
    allow_url_hosts: tuple[str, ...] = ()
    access_log: bool = False
    model: str | None = None

    def __post_init__(self) -> None:
        if not self.host or any(c.isspace() for c in self.host):
            raise UsageError(f"host must be an address or a name without spaces. Received: {self.host!r}")
        if not 1 <= self.port <= 65535:
            raise UsageError(f"port must be a number from 1 to 65535. Received: {self.port}")
        if self.engine not in ENGINES:
            raise UsageError(f"engine must be one of {', '.join(ENGINES)}. Received: {self.engine!r}")
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}. Received: {self.precision!r}")
        if self.replicas is not None and not 1 <= self.replicas <= _MAX_REPLICAS:
            raise UsageError(f"replicas must be auto or a number from 1 to {_MAX_REPLICAS}. Received: {self.replicas}")
        if self.max_replicas is not None and not self.replica_count <= self.max_replicas <= _MAX_REPLICAS:
            raise UsageError(
                f"max_replicas must be a number from {self.replica_count} to {_MAX_REPLICAS}. "
                f"Received: {self.max_replicas}"
            )
        if self.threads is not None and not 1 <= self.threads <= _MAX_THREADS:
            raise UsageError(f"threads must be auto or a number from 1 to {_MAX_THREADS}. Received: {self.threads}")
        for host in self.allow_url_hosts:
            check_host_pattern(host)
        # The client of such a body would be asked to try again for ever.
        if self.limits.max_buffered_bytes < self.limits.max_body_bytes:
            raise UsageError(
                f"max_buffered_bytes must be at least {self.limits.max_body_bytes}, the largest body with "
                f"max_image_bytes={self.limits.max_image_bytes}. Received: {self.limits.max_buffered_bytes}"
            )

    @property
    def replica_count(self) -> int:
        """The number of replicas, auto resolved."""
        return 1 if self.replicas is None else self.replicas

    @property
    def thread_count(self) -> int:
        """The threads of each replica, auto resolved."""
        return max(1, usable_cores() // self.replica_count) if self.threads is None else self.threads

    @property
    def url(self) -> str:
        """The address that a client on this machine uses: loopback where the server listens on all interfaces."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def to_json(self) -> str:
        """These settings as one line of JSON, for a server in a process of its own."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ServeSettings:
        """The settings that `to_json` wrote; what is left out has its default."""
        values = json.loads(text)
        values["limits"] = RequestLimits(**values.get("limits", {}))
        values["allow_url_hosts"] = tuple(values.get("allow_url_hosts", ()))
        return cls(**values)
