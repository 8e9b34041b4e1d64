"""What Ray Serve's HAProxy lacks, added to its configuration each time it starts.

Ray writes HAProxy's configuration from a fixed template: statistics and metrics on all interfaces, an admin socket
that everybody may use, plain-text error pages, no limit on a body, and headers by which a client switches off
Serve's own timeout. Ray runs whatever `RAY_SERVE_HAPROXY_BINARY_PATH` names, so a run points it to a two-line script
(`install`) that runs this module: it rewrites the file named after `-f` and then becomes the real HAProxy, with the
same arguments and process id. Directives: HAProxy 2.8 Configuration Manual.

Only the standard library is imported: this starts on every reload, and a reload should take milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

_SETTINGS_FILE = "proxy.json"
_PR_SET_PDEATHSIG = 1
# Seconds for a request line and headers; the body has the replica's own deadline.
_SLOW_HEADERS_S = 10
_BOTH_LENGTHS = "{ req.hdr_cnt(content-length) gt 0 } { req.hdr_cnt(transfer-encoding) gt 0 }"
_HAS_LENGTH, _HAS_PIECES = "{ req.hdr_val(content-length) gt 0 }", "{ req.hdr_cnt(transfer-encoding) gt 0 }"
# Those that the parser of Ray's server knows; of another it would say, in plain text, that it is no HTTP.
_METHODS = "GET HEAD POST PUT PATCH DELETE OPTIONS TRACE"
_ALLOWED = "GET, HEAD, POST"
# What asks for predictions: these paths, and those that end so. Only it takes places at the replicas.
PREDICTION_PATHS = ("/predict", "/predict/batch", "/explain", "/lesson")
PREDICTION_ENDS = (":predict", "/infer")
_PREDICTION_PATH = f"path,url_dec -m str {' '.join(PREDICTION_PATHS)}"
_PREDICTION_END = f"path,url_dec -m end {' '.join(PREDICTION_ENDS)}"
# What is refused there for its method anyway is left to the replica, which says so.
_ASKS_FOR_A_PAGE = f"{{ method GET HEAD }} !{{ {_PREDICTION_PATH} }} !{{ {_PREDICTION_END} }}"
# Keys of the table that counts them.
_BEGUN, _ANSWERED = 1, 2
# One beyond the replicas' places still comes through to be refused there, so that their metrics tell of the crowd.
_LEFT_TO_REPLICA = 1
# HAProxy's own refusals: status -> (reason, code, message). The client reads JSON whoever answers.
_OWN_ERRORS = {
    400: ("Bad Request", "bad_request", "The request is not valid HTTP."),
    408: ("Request Timeout", "slow_request", "The request must arrive faster."),
    500: ("Internal Server Error", "internal", "The server failed to answer this request."),
    502: ("Bad Gateway", "replica_failed", "The server failed to answer this request; try again."),
    503: ("Service Unavailable", "not_ready", "No replica is ready; try again."),
    504: ("Gateway Timeout", "deadline", "There was no answer in time."),
}
# Statuses that Ray Serve itself answers in plain text.
_RAY_ERRORS = {
    400: ("bad_request", "The request is not valid HTTP."),
    408: ("deadline", "There was no answer in time."),
    499: ("client_closed_request", "The client went away."),
    500: ("internal", "The server failed to answer this request."),
    503: ("overloaded", "All places are taken; try again."),
}


class ConfigChanged(Exception):
    """Ray's template no longer has what this module rewrites."""


@dataclass(frozen=True)
class ProxySettings:
    """What the proxy in front adds.

    Arguments:
        binary: the real HAProxy.
        host: the address on which it listens; Ray's own processes stay on loopback whatever it is.
        port: its port.
        max_body_bytes: a larger Content-Length is refused before the body is read.
        retry_after_s: what a refused client is asked to wait.
        max_in_flight: predictions that one replica holds at once. What comes beyond the places of all replicas is
            refused here, which takes none of their time; None leaves every refusal to them.
        metrics_port: where the figures of this machine's own replica can be read, while there is one; None for nowhere.
        silent_client_s: without a byte from a client that has to send or to read; one that waits for its answer may
            take longer. More than the replicas' deadline, so that they say what was too slow.
    """

    binary: str
    host: str
    port: int
    max_body_bytes: int
    retry_after_s: int
    max_in_flight: int | None = None
    metrics_port: int | None = None
    silent_client_s: int = 60


def install(folder: Path, settings: ProxySettings) -> Path:
    """Write the settings and the script to run in HAProxy's place, and return the script.

    Arguments:
        folder: the run's own folder.
        settings: what to add.
    """
    (folder / _SETTINGS_FILE).write_text(json.dumps(asdict(settings)), encoding="utf-8")
    for status, (reason, code, message) in _OWN_ERRORS.items():
        page = _page(status, reason, _error(code, message), settings.retry_after_s)
        (folder / f"{status}.http").write_bytes(page)
    script = folder / "haproxy"
    command = " ".join(shlex.quote(part) for part in (sys.executable, "-I", "-S", __file__, str(folder)))
    script.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    script.chmod(0o700)
    return script


def harden(config: str, settings: ProxySettings, folder: Path) -> str:
    """Ray's configuration with this module's changes; one that has them already comes back unchanged.

    Arguments:
        config: the text that Ray wrote.
        settings: what to add.
        folder: where `install` wrote the error pages.

    Raises:
        ConfigChanged: a line to be rewritten is not there.
    """
    marker = "# rayml: hardened\n"
    if config.startswith(marker):
        return config
    # The admin socket commands the proxy: it is for the user who started it.
    config = _once(r" mode 666 level admin ", " mode 600 level admin ", config)
    # Nobody listens to syslog on loopback for us, and a datagram for each request is not free.
    config = _once(r"\n    log 127\.0\.0\.1:514 local0 info", "", config)
    # Ports open to everybody: closed. The controller asks through the admin socket.
    config = _once(r"\nfrontend prometheus\n(?:    .*\n)+", "\n", config)
    config = _once(r"\nlisten stats\n(?:  .*\n)+", "\n", config)
    config = re.sub(r"\n    errorfile \d+ \S+", "", config)
    # Ray's is an hour, for which an upload that stopped, or an answer that nobody reads, would hold a connection.
    config = _once(r"\n    timeout client \S+\n", f"\n    timeout client {settings.silent_client_s}s\n", config)
    pages = "".join(f"    errorfile {status} {folder}/{status}.http\n" for status in _OWN_ERRORS)
    # HTTP/2 without TLS: nobody's client asks for it, and a body there needs none of the headers that are looked at.
    defaults = f"    option disable-h2-upgrade\n    timeout http-request {_SLOW_HEADERS_S}s\n{pages}"
    config = _once(r"\ndefaults\n", f"\ndefaults\n{defaults}", config)
    bind = _bind(settings.host, settings.port)
    config = _once(r"\n    bind [^:\s]+:\d+\n", f"\n    {bind}\n{_rules(settings)}", config)
    # Before the first deployment Ray's proxy says 404 and repeats the path; the truth is "not yet".
    config = _once(
        r"\n    http-request return status 404 content-type text/plain lf-string .*\n",
        f"\n    {_return('http-request', 503, *_OWN_ERRORS[503][1:], settings.retry_after_s)}\n",
        config,
    )
    rules = _room(settings)
    config = re.sub(r"\nbackend http-\S+\n", lambda found: found[0] + rules, config)
    return marker + config + _metrics(config, settings)


def _rules(settings: ProxySettings) -> str:
    too_much = f"{{ req.hdr_val(content-length) gt {settings.max_body_bytes} }}"
    too_long = f"The body must be at most {settings.max_body_bytes} bytes."
    two_lengths = "Content-Length and Transfer-Encoding exclude each other."
    no_body = "GET and HEAD must be without a body."
    method, path = f"The method must be one of {_ALLOWED}.", "The request must name a path."
    lines = [
        # The clients of these routes expect an error that is a string.
        "http-request set-var(txn.plain) bool(true) if { path_beg /v1/ /v2/ } || { path /v2 }",
        *_either("http-request", 405, "method_not_allowed", method, condition=f"!{{ method {_METHODS} }}"),
        # `OPTIONS *`, say, which no backend is chosen for: the answer would be 503, as if there were one in a while.
        *_either("http-request", 400, "bad_request", path, condition="!{ path_beg / }"),
        # Two lengths for one body are how requests are smuggled (RFC 9112, section 6.1).
        *_either("http-request", 400, "bad_request", two_lengths, condition=_BOTH_LENGTHS),
        *_either("http-request", 413, "body_too_large", too_long, condition=too_much),
        # It means nothing (RFC 9110, section 9.3.1), and a replica would hold it without counting it.
        *_either("http-request", 400, "bad_request", no_body, condition=f"{_ASKS_FOR_A_PAGE} {_HAS_LENGTH}"),
        *_either("http-request", 400, "bad_request", no_body, condition=f"{_ASKS_FOR_A_PAGE} {_HAS_PIECES}"),
        # By these a client would switch off Serve's timeout and its watch for clients that are gone.
        "http-request del-header x-request-timeout-seconds",
        "http-request del-header x-request-disconnect-disabled",
        # Ray would take a stranger's request id into its logs and routing.
        "http-request del-header x-request-id",
        # In any spelling that Ray knows; of a value that is not UTF-8 it would make a 500.
        "http-request del-header ^serve[-_]multiplexed[-_]model[-_]id$ -m reg",
        "http-request del-header ^x[-_]session[-_]id$ -m reg",
        # Nothing here speaks WebSocket; Ray's server would begin to, on any path.
        "http-request del-header upgrade",
        "http-response del-header server",
        "http-response del-header x-request-id",
        "http-response allow if { status lt 400 }",  # What follows is for errors.
    ]
    for status, (code, message) in _RAY_ERRORS.items():
        rays_own = f"{{ status {status} }} !{{ res.hdr(content-type) -m beg application/json }}"
        lines += _either("http-response", status, code, message, settings.retry_after_s, condition=rays_own)
    return "".join(f"    {line}\n" for line in lines)


def _room(settings: ProxySettings) -> str:
    """Refuse predictions beyond the places of the replicas that are up; health and pages stay reachable.

    A table of two entries counts those that have begun, and those among them that have their answer but have not ended
    since a client does not send the rest of its body, or does not read. `be_conn` counts all of them, and whatever else
    is asked of the replicas.
    """
    if settings.max_in_flight is None:
        return ""
    places = settings.max_in_flight + _LEFT_TO_REPLICA
    asks = "{ method POST } is_prediction"
    condition = f"{asks} {{ int({_BEGUN}),table_conn_cur,sub(txn.answered),sub(txn.places) ge 0 }}"
    lines = [
        "stick-table type integer size 2 store conn_cur",
        f"acl is_prediction {_PREDICTION_PATH}",
        f"acl is_prediction {_PREDICTION_END}",
        f"http-request set-var(txn.places) nbsrv,mul({places})",
        f"http-request set-var(txn.answered) int({_ANSWERED}),table_conn_cur",
        *_either("http-request", 503, *_RAY_ERRORS[503], settings.retry_after_s, condition=condition),
        # After the refusals: what is refused counts at no moment.
        f"http-request track-sc0 int({_BEGUN}) if {asks}",
        f"http-response track-sc1 int({_ANSWERED}) if {{ sc_tracked(0) }}",
    ]
    return "".join(f"    {line}\n" for line in lines)


def _metrics(config: str, settings: ProxySettings) -> str:
    """A port for the figures of this machine's replica: behind the other port any replica may answer.

    Ray names servers of this machine by its loopback address, and the fallback of all, a Python proxy, `backup`.
    """
    local = re.search(r"\n    server \S+ (127\.0\.0\.1:\d+) (?!.* backup)", config)
    if settings.metrics_port is None or local is None:
        return ""
    bind = _bind(settings.host, settings.metrics_port)
    only = "http-request deny unless { path /metrics }"
    return f"\nlisten replica_metrics\n    {bind}\n    {only}\n    server replica {local[1]}\n"


def _bind(host: str, port: int) -> str:
    return f"bind [{host}]:{port}" if ":" in host else f"bind {host}:{port}"


def _either(
    when: str, status: int, code: str, message: str, retry_after_s: int = 0, *, condition: str
) -> Iterator[str]:
    """The answer under a condition, in the words of the route that was asked."""
    for body, which in (
        (json.dumps({"error": message}, separators=(",", ":")), "{ var(txn.plain) -m bool }"),
        (_error(code, message), ""),
    ):
        yield f"{_return_body(when, status, body, retry_after_s)} if {condition} {which}".rstrip()


def _return(when: str, status: int, code: str, message: str, retry_after_s: int = 0) -> str:
    return _return_body(when, status, _error(code, message), retry_after_s)


def _return_body(when: str, status: int, body: str, retry_after_s: int) -> str:
    more = {405: f" hdr Allow {_quoted(_ALLOWED)}", 503: f" hdr Retry-After {retry_after_s}"}.get(status, "")
    return f"{when} return status {status} content-type application/json string {_quoted(body)}{more}"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace(" ", "\\ ")


def _error(code: str, message: str) -> str:
    return json.dumps({"error": {"code": code, "message": message}}, separators=(",", ":"))


def _page(status: int, reason: str, body: str, retry_after_s: int) -> bytes:
    retry = f"Retry-After: {retry_after_s}\r\n" if status == 503 else ""
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nCache-Control: no-cache\r\n"
    return f"{head}{retry}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()


def _once(pattern: str, replacement: str, text: str) -> str:
    changed, count = re.subn(pattern, lambda _: replacement, text)
    if count != 1:
        raise ConfigChanged(f"HAProxy's configuration must have one {pattern!r}. Received: {count}")
    return changed


def main(arguments: list[str]) -> None:
    """Rewrite the configuration and become HAProxy.

    Arguments:
        arguments: the run's folder, then HAProxy's own arguments.
    """
    folder, rest = Path(arguments[0]), arguments[1:]
    settings = ProxySettings(**json.loads((folder / _SETTINGS_FILE).read_text(encoding="utf-8")))
    config_path = Path(rest[rest.index("-f") + 1])
    config = harden(config_path.read_text(encoding="utf-8"), settings, folder)
    new_path = config_path.with_name(f"{config_path.name}.{os.getpid()}")
    new_path.write_text(config, encoding="utf-8")
    new_path.replace(config_path)
    # HAProxy ends when Ray's process that controls it does (prctl(2); the setting survives execve): one left behind
    # would hold the port and answer 503 for ever.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.umask(0o077)
    # Ray's processes are batch work under `rayml serve`, but this one answers (`serving.scheduling`).
    if os.sched_getscheduler(0) == os.SCHED_BATCH:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.execv(settings.binary, [settings.binary, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
