"""The server under load and abuse: many clients, killed clients, hundreds of requests, and its own OpenAPI fuzzed."""

import gc
import gzip
import hashlib
import io
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import httpx
import numpy as np
import pytest
from phantom import phantom_engine, running_server

from medsam2_ft.deploy import messages
from medsam2_ft.deploy.limits import Limits
from medsam2_ft.deploy.server import create_app


def volume_of(client: int, *, shape=(10, 48, 56)) -> np.ndarray:
    """Every client's own bright cuboid."""
    array = np.full(shape, 10, np.uint8)
    y, x = 4 + client % 20, 5 + client % 30
    array[3:7, y : y + 12, x : x + 10] = 200
    array[0, 0, 0] = client
    return array


def pack(array: np.ndarray) -> tuple[bytes, str]:
    plain = io.BytesIO()
    np.save(plain, array)
    return gzip.compress(plain.getvalue(), 1), hashlib.sha256(plain.getvalue()).hexdigest()


def work_as_client(url: str, number: int) -> bool:
    """Upload, click, propagate, fetch; True if every voxel is this client's own."""
    array = volume_of(number)
    body, sha256 = pack(array)
    with httpx.Client(base_url=url, timeout=60) as http:
        base = f"/sessions/{http.post('/sessions').raise_for_status().json()['session']}"
        http.put(f"{base}/volumes/{sha256}", content=body).raise_for_status()
        prompt = {"object": number % 200 + 1, "slice": 5, "box": [0, 0, 56, 48]}
        request = {"volume": sha256, "prompts": [prompt]}
        masks = http.post(f"{base}/masks", json=request).raise_for_status().json()
        mask = messages.decode_mask(masks["masks"][0]["mask"], 48, 56)
        job = f"{base}/jobs/{http.post(f'{base}/jobs', json=request).raise_for_status().json()['job']}"
        while http.get(job).raise_for_status().json()["status"] in ("queued", "running"):
            threading.Event().wait(0.05)
        labels = np.load(io.BytesIO(gzip.decompress(http.get(f"{job}/labels").raise_for_status().content)))
        http.delete(base).raise_for_status()
    is_own = np.array_equal(labels, np.where(array > 100, number % 200 + 1, 0))
    return is_own and np.array_equal(mask, array[5] > 100)


def test_fifty_clients_at_once_each_get_their_own():
    app = create_app(phantom_engine(), limits=Limits(queued_jobs=64))
    with running_server(app) as url:
        with ThreadPoolExecutor(50) as clients:
            assert all(clients.map(lambda number: work_as_client(url, number), range(50)))
        desk = app.state.desk
        assert len(desk.sessions) == 0 and list(desk.folder.iterdir()) == []
        assert httpx.get(f"{url}/healthz").json()["jobs"] == 0


STATM = Path("/proc/self/statm")


def resident_mib() -> float:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not STATM.exists(), reason="reads /proc")
def test_five_hundred_requests_leave_memory_flat():
    with running_server(create_app(phantom_engine())) as url:
        array = volume_of(1, shape=(40, 256, 256))
        body, sha256 = pack(array)
        with httpx.Client(base_url=url, timeout=60) as http:
            base = f"/sessions/{http.post('/sessions').json()['session']}"
            http.put(f"{base}/volumes/{sha256}", content=body).raise_for_status()

            def click(number: int) -> None:
                prompt = {"object": 1, "slice": number % 40, "box": [0, 0, 256, 256]}
                http.post(f"{base}/masks", json={"volume": sha256, "prompts": [prompt]}).raise_for_status()

            for number in range(100):
                click(number)
            gc.collect()
            before = resident_mib()
            for number in range(500):
                click(number)
            gc.collect()
            after = resident_mib()
            print(f"resident memory before 500 clicks {before:.1f} MiB, after {after:.1f} MiB")
            assert after - before < 15


def test_clients_that_vanish_leave_a_working_server_and_a_clean_log(capfd):
    with running_server(create_app(phantom_engine())) as url:
        host, port = url.removeprefix("http://").split(":")
        session = httpx.post(f"{url}/sessions").json()["session"]
        for request in (b"PUT", b"POST"):
            for _ in range(10):
                with socket.create_connection((host, int(port))) as line:
                    path = (
                        f"/sessions/{session}/volumes/{'0' * 64}" if request == b"PUT" else f"/sessions/{session}/masks"
                    )
                    head = f"{request.decode()} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100000\r\n"
                    line.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + b'{"half":')
        assert work_as_client(url, 7)
    assert "Traceback" not in capfd.readouterr().err


def test_slow_requests_do_not_hold_up_others():
    with running_server(create_app(phantom_engine())) as url:
        host, port = url.removeprefix("http://").split(":")
        lines = [socket.create_connection((host, int(port))) for _ in range(60)]
        for line in lines:
            line.sendall(b"PUT /sessions/x/volumes/x HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        assert work_as_client(url, 3)
        for line in lines:
            line.close()


def test_health_answers_while_clicks_wait_for_the_model():
    engine = phantom_engine()
    with running_server(create_app(engine)) as url, ThreadPoolExecutor(80) as clients:
        array = volume_of(1)
        body, sha256 = pack(array)
        base = f"{url}/sessions/{httpx.post(f'{url}/sessions').json()['session']}"
        httpx.put(f"{base}/volumes/{sha256}", content=body)
        request = {"volume": sha256, "prompts": [{"object": 1, "slice": 5, "box": [0, 0, 56, 48]}]}
        with engine.turns.click():
            waiting = [clients.submit(httpx.post, f"{base}/masks", json=request, timeout=60) for _ in range(80)]
            refused = next(as_completed(waiting))
            assert refused.result().status_code == 429
            assert httpx.get(f"{url}/healthz", timeout=5).status_code == 200
            assert httpx.get(f"{base}/volumes/{sha256}", timeout=5).status_code == 200
        codes = [w.result().status_code for w in waiting]
        assert set(codes) == {200, 429}


@pytest.mark.slow
def test_its_own_openapi_finds_no_5xx():
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings

    @schemathesis.serializer("application/gzip")
    def as_it_is(context, value):
        return value if isinstance(value, bytes) else getattr(value, "data", None) or str(value).encode()

    app = create_app(phantom_engine(), limits=Limits(sessions=10_000))
    with running_server(app) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        session = httpx.post(f"{url}/sessions").json()["session"]
        body, sha256 = pack(volume_of(1))
        httpx.put(f"{url}/sessions/{session}/volumes/{sha256}", content=body)
        statuses: dict[int, int] = {}
        for result in schema.get_all_operations():
            operation = result.ok()

            @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy())
            def fuzz(case):
                if case.path_parameters and "session" in case.path_parameters and case.method != "DELETE":
                    case.path_parameters["session"] = session
                response = case.call(base_url=url)
                statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
                assert response.status_code < 500, (case.method, case.path, response.text)

            fuzz()
        assert max(statuses) < 500 and 422 in statuses
