"""Servers that are slow, drop connections, serve another model or stand behind TLS; what a killed trainer leaves."""

import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import trustme
from support.fake_server import QUICK, FakeServer, ask, make_engine
from support.records import plain_rollout
from support.running import SMALL, refused, start
from support.servers import Gate

from iwopd.config import HttpConfig
from iwopd.errors import EngineError
from iwopd.rollout.vllm_server import VllmServerEngine
from iwopd.scoring.vllm_server import VllmServerTeacher
from iwopd.vllm.http import is_loopback
from iwopd.vllm.servers import Servers
from iwopd.vllm.transfer import SharedFile, _ServerClient

ROLLOUT = plain_rollout([1, 2], [3, 4])


def make_teacher(*urls: str, names: tuple[str, ...] = ()) -> VllmServerTeacher:
    return VllmServerTeacher(Servers("scoring.urls", urls, QUICK), names=names)


def score(teacher: VllmServerTeacher) -> list[float]:
    (scored,) = teacher.score([ROLLOUT], lambda length: (0, length))
    return scored.teacher_logprobs.tolist()


# ------------------------------------------------------------------------------------- which model a server serves


@pytest.mark.cli
def test_a_server_of_another_model_is_refused_and_a_model_under_another_name_is_not(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, smoke_models: dict[str, Path]
) -> None:
    with FakeServer(lambda count: (500, {})) as fake:
        fake.root = "/elsewhere/another-model"
        settings = (*SMALL, "scoring=vllm_server", f"scoring.urls=[{fake.url}]", "scoring.http.retries=0")
        line = refused(capsys, "train", *settings, f"run.dir={tmp_path / 'a'}")
        assert "serves /elsewhere/another-model, not the teacher toy://smoke/teacher" in line
        assert "set scoring.served_as=/elsewhere/another-model" in line
        named = (*settings, f"run.dir={tmp_path / 'b'}", "scoring.served_as=/elsewhere/another-model")
        assert "no usable answer after 1 tries" in refused(capsys, "train", *named)  # it got as far as scoring


@pytest.mark.parametrize(
    ("root", "name", "same"),
    [
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B", True),
        ("/cache/models--Qwen--Qwen3-4B/snapshots/0f3a", "Qwen/Qwen3-4B", True),
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-8B", False),
        ("/models/Qwen3-4B", "Qwen/Qwen3-4B", False),
    ],
)
def test_names_of_one_model(root: str, name: str, same: bool) -> None:
    with FakeServer() as fake:
        fake.root = root
        if same:
            make_teacher(fake.url, names=(name,)).close()
            return
        with pytest.raises(EngineError, match=f"serves {root}, not the teacher {name}"):
            make_teacher(fake.url, names=(name,))


def test_a_folder_is_the_same_by_whatever_path(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    with FakeServer() as fake:
        fake.root = str(tmp_path / "link")
        make_teacher(fake.url, names=(str(tmp_path / "model"),)).close()


def test_servers_of_one_teacher_that_score_differently_are_refused() -> None:
    with FakeServer() as one, FakeServer() as other:
        other.shift = 0.5
        with pytest.raises(EngineError, match=rf"scoring\.urls={other.url}: scores a fixed prompt 0\.5 nats"):
            make_teacher(one.url, other.url)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_a_server_that_comes_back_is_asked_again_who_it_is(shift: float) -> None:
    with FakeServer() as first, FakeServer() as second:
        gate = Gate(second.server.server_address[1])
        teacher = make_teacher(first.url, gate.url)
        gate.shut()
        teacher.servers.servers[0].outstanding = 10**6  # so that the second is asked, and found dead
        assert score(teacher) == [-3.0, -4.0]
        assert [server.alive for server in teacher.servers.servers] == [True, False]
        teacher.servers.servers[1].url = second.url
        second.shift = shift
        if shift:
            with pytest.raises(EngineError, match="serves other weights"):
                score(teacher)
        else:
            assert score(teacher) == [-3.0, -4.0]
        teacher.close()


def test_a_server_replaced_between_two_requests_is_noticed_before_the_update() -> None:
    with FakeServer() as fake:
        teacher = make_teacher(fake.url)
        score(teacher)
        fake.shift = -1.0
        with pytest.raises(EngineError, match="serves other weights"):
            score(teacher)
        teacher.close()


# ------------------------------------------------------------------------------------------- deadlines, drops, close


def test_closing_does_not_wait_for_requests_under_way() -> None:
    answer_now = threading.Event()

    def hold(count: int) -> None:
        answer_now.wait(60)

    with FakeServer(hold) as fake:
        servers = Servers("rollout.urls", [fake.url], HttpConfig())
        future = servers.submit({"prompt": [1], "max_tokens": 1}, 1, lambda choice: None)
        while not fake.completions:
            time.sleep(0.01)
        servers.close()
        assert future.cancelled()
        assert not answer_now.is_set()  # the server has not answered, and nobody waits for it
        answer_now.set()


@pytest.mark.process
def test_after_ctrl_c_a_run_ends_without_waiting_for_its_teacher(tmp_path: Path, smoke_models: dict[str, Path]) -> None:
    answer_now = threading.Event()

    def hold(count: int) -> None:
        answer_now.wait(100)

    with FakeServer(hold) as fake:
        settings = ("scoring=vllm_server", f"scoring.urls=[{fake.url}]", "scoring.served_as=m", "eval.every=0")
        running = start("train", *SMALL, *settings, "run.samples=0", f"run.dir={tmp_path / 'run'}")
        try:
            while not fake.completions:
                assert running.poll() is None, running.communicate()
                time.sleep(0.05)
            running.send_signal(signal.SIGINT)
            running.communicate(timeout=60)  # http.timeout_s is 600
            assert not answer_now.is_set()
        finally:
            answer_now.set()
            running.kill()
    assert running.returncode == 130


class Trickle(FakeServer):
    """Answers a completion byte by byte, forever."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped = threading.Event()
        trickle = self

        class Handler(self.server.RequestHandlerClass):  # type: ignore[name-defined,misc]  # made at run time
            def do_POST(self) -> None:
                trickle.completions += 1
                self.send_response(200)
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                try:
                    while not trickle.stopped.wait(0.02):
                        self.wfile.write(b" ")
                except OSError:
                    pass
                self.close_connection = True

        self.server.RequestHandlerClass = Handler

    def __exit__(self, *exception: object) -> None:
        self.stopped.set()
        super().__exit__(*exception)


def test_an_answer_that_trickles_in_is_slow_too_and_the_request_goes_elsewhere() -> None:
    settings = HttpConfig(connections=4, timeout_s=0.3, retries=2, backoff_s=0.01)
    with Trickle() as slow, FakeServer() as quick, make_engine(slow.url, quick.url, settings=settings) as engine:
        assert len(ask(engine, n=4)) == 4
        assert slow.completions > 0
        assert quick.completions == 4


@pytest.mark.parametrize("path", ["/weight_info", "/reset_prefix_cache", "/update_weight_version", "/v1/completions"])
def test_one_dropped_connection_does_not_stop_a_run(path: str) -> None:
    with FakeServer() as fake, make_engine(fake.url) as engine:
        fake.dropped.append(path)
        engine.sync_weights(None, 1)  # type: ignore[arg-type]  the fake takes anything
        assert len(ask(engine)) == 4
        assert not fake.dropped
        assert engine.servers.servers[0].alive


def test_a_dropped_handshake_is_tried_again() -> None:
    with FakeServer() as fake:
        fake.dropped.append("/v1/models")
        make_engine(fake.url).close()
        assert not fake.dropped


def test_a_request_that_must_not_happen_twice_is_not_repeated() -> None:
    with FakeServer() as fake, make_engine(fake.url) as engine:
        client = _ServerClient(engine.servers, engine.servers.servers[0])
        fake.dropped.append("/start_weight_update")
        with pytest.raises(EngineError, match="/start_weight_update fails"):
            client.start_weight_update()
        assert fake.posted == []


# --------------------------------------------------------------------------------- proxies, keys, certificates, limits


def test_weights_by_nccl_or_ipc_go_through_the_same_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy sees them, and the key is sent."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.delenv("NO_PROXY", raising=False)
    with FakeServer() as fake:
        servers = Servers("rollout.urls", [fake.url], QUICK, api_key="secret")
        client = _ServerClient(servers, servers.servers[0])
        client.init_weight_transfer_engine({"rank": 0})
        client.start_weight_update()
        client.update_weights({"names": ["a"], "ipc_handles": [{"gpu": (1, 2)}]})
        client.finish_weight_update("7")
        servers.close()
        paths = ["/init_weight_transfer_engine", "/start_weight_update", "/update_weights", "/finish_weight_update"]
        assert fake.posted == paths
        assert {fake.headers[path]["Authorization"] for path in paths} == {"Bearer secret"}


@pytest.fixture
def authority(tmp_path: Path) -> tuple[Path, trustme.LeafCert]:
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path / "ca.pem", made.issue_cert("127.0.0.1")


@pytest.fixture
def tls_server(authority: tuple[Path, trustme.LeafCert]) -> Iterator[str]:
    with FakeServer() as fake:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority[1].configure_cert(context)
        fake.server.socket = context.wrap_socket(fake.server.socket, server_side=True)
        yield fake.url.replace("http:", "https:")


def test_a_private_certificate_authority_is_used_where_it_is_named(
    tls_server: str, authority: tuple[Path, trustme.LeafCert], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineError, match="CERTIFICATE_VERIFY_FAILED"):
        make_engine(tls_server)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority[0]))
    with make_engine(tls_server) as engine:
        assert len(ask(engine)) == 4


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://127.8.0.1", True),
        ("http://[::1]:8000/v", True),
        ("http://localhost:1", True),
        ("http://10.0.0.3:8000", False),
        ("http://gpu-7:8000", False),
    ],
)
def test_addresses_of_this_machine(url: str, local: bool) -> None:
    assert is_loopback(url) is local


def test_plain_http_beyond_this_machine_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    settings = HttpConfig(retries=0, backoff_s=0.0)
    with pytest.raises(EngineError):
        Servers("rollout.urls", ["http://nowhere.invalid:8000"], settings)
    assert "plain http beyond this machine" in caplog.text
    caplog.clear()
    with pytest.raises(EngineError):
        Servers("rollout.urls", ["http://127.0.0.1:9", "https://nowhere.invalid"], settings)
    assert not caplog.text


@pytest.mark.cli
def test_a_password_in_an_address_is_refused_and_not_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for setting in (
        "rollout=vllm_server rollout.urls=[http://me:hunter2@a:1]",
        "scoring=vllm_server scoring.urls=[http://x@a]",
    ):
        line = refused(capsys, "train", *SMALL, *setting.split(), f"run.dir={tmp_path / 'run'}")
        assert "holds a user name or password" in line
        assert "hunter2" not in line


def test_ids_beyond_the_vocabulary_are_named_rather_than_all_that_are_allowed() -> None:
    with FakeServer() as fake:
        servers = Servers("rollout.urls", [fake.url], QUICK)
        with VllmServerEngine(servers, [0], None, vocabulary=151_936, rows=152_064) as engine:  # type: ignore[arg-type]
            engine.route = type("NoRoute", (), {"close": lambda self: None})()
            ask(engine, n=1)
        (body,) = fake.bodies
    assert "allowed_token_ids" not in body
    assert body["logit_bias"] == {str(token): -100 for token in range(151_936, 152_064)}


def test_an_answer_with_an_id_beyond_the_vocabulary_is_asked_for_again() -> None:
    with FakeServer() as fake, make_engine(fake.url) as engine:  # it answers with token 7
        engine.vocabulary, engine.rows = 7, 8
        with pytest.raises(EngineError, match="token 7, which the teacher does not have"):
            ask(engine, n=1)


# ------------------------------------------------------------------------------------------------- shared memory

HOLD = """
import sys, time, torch
from iwopd.vllm.transfer import SharedFile
made = SharedFile(None, sys.argv[1], torch.float32)
print(made.file, flush=True)
time.sleep(600)
"""


@pytest.mark.process
def test_weights_left_by_a_killed_trainer_are_removed_and_those_of_a_living_one_are_not(tmp_path: Path) -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        dead, living = (Path(child.stdout.readline().strip()).parent for child in running if child.stdout)
        os.kill(running[0].pid, signal.SIGKILL)
        running[0].wait()
        assert dead.exists()
        SharedFile(None, str(tmp_path), torch.float32).close()  # type: ignore[arg-type]
        assert not dead.exists()
        assert living.exists()
    finally:
        for child in running:
            child.kill()
            child.communicate()


class Weights:
    """A student of one weight."""

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "w", torch.zeros(2)


@pytest.mark.parametrize(("shared", "folder_mode", "file_mode"), [(False, 0o700, 0o600), (True, 0o750, 0o640)])
def test_who_may_read_the_weights(
    shared: bool, folder_mode: int, file_mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iwopd.vllm.transfer.MEMORY", tmp_path)
    before = os.umask(0o027)
    try:
        route = SharedFile(None, str(tmp_path) if shared else None, torch.float32)  # type: ignore[arg-type]
        route.publish(Weights())
    finally:
        os.umask(before)
    assert route.file.stat().st_mode & 0o777 == file_mode
    assert route.file.parent.stat().st_mode & 0o777 == folder_mode
    route.close()
    assert not route.file.parent.exists()
