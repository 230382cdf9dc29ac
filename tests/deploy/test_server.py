import base64
import contextlib
import gzip
import hashlib
import io
import threading
import time
import zlib

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from phantom import PhantomPredictor, phantom_engine, sweep

from medsam2_ft.deploy import messages
from medsam2_ft.deploy.access import check_binding
from medsam2_ft.deploy.limits import Limits
from medsam2_ft.deploy.server import create_app
from medsam2_ft.errors import ConfigError


def packed(array: np.ndarray) -> tuple[bytes, str]:
    plain = io.BytesIO()
    np.save(plain, array)
    return gzip.compress(plain.getvalue()), hashlib.sha256(plain.getvalue()).hexdigest()


def ball(shape=(12, 40, 48), center=(6, 20, 24), radius=5) -> np.ndarray:
    grid = np.indices(shape).astype(float)
    far = sum(((axis - c) * s) ** 2 for axis, c, s in zip(grid, center, (2, 1, 1), strict=True))
    return np.where(far < radius**2, 200, 20).astype(np.uint8)


def opened(client, volume=None) -> tuple[str, str]:
    session = client.post("/sessions").json()["session"]
    body, sha256 = packed(ball() if volume is None else volume)
    answer = client.put(f"/sessions/{session}/volumes/{sha256}", content=body)
    assert answer.status_code == 201, answer.text
    return session, sha256


def finished(client, url: str) -> dict:
    for _ in range(500):
        state = client.get(url).json()
        if state["status"] not in ("queued", "running"):
            return state
        time.sleep(0.01)
    raise AssertionError(state)


BOX = {"object": 3, "slice": 6, "box": [10, 10, 40, 35]}


@pytest.fixture
def client():
    with TestClient(create_app(phantom_engine())) as client:
        yield client


def test_a_box_becomes_a_mask_and_a_propagation_a_label_map(client):
    session, volume = opened(client)
    answer = client.post(f"/sessions/{session}/masks", json={"volume": volume, "prompts": [BOX]}).json()
    mask = messages.decode_mask(answer["masks"][0]["mask"], answer["height"], answer["width"])
    np.testing.assert_array_equal(mask, ball()[6] > 100)

    job = client.post(f"/sessions/{session}/jobs", json={"volume": volume, "prompts": [BOX]})
    assert job.status_code == 202
    url = f"/sessions/{session}/jobs/{job.json()['job']}"
    assert finished(client, url) == {"job": job.json()["job"], "status": "done", "progress": 1.0, "message": ""}
    labels = np.load(io.BytesIO(gzip.decompress(client.get(f"{url}/labels").content)))
    np.testing.assert_array_equal(labels, np.where(ball() > 100, 3, 0))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_any_axis_may_be_the_slices(client, axis):
    session, volume = opened(client)
    center, other = (6, 20, 24), [a for a in range(3) if a != axis]
    y, x = (center[a] for a in other)
    prompt = {"object": 1, "slice": center[axis], "box": [x - 9, y - 9, x + 9, y + 9]}
    body = {"volume": volume, "axis": axis, "prompts": [prompt]}
    answer = client.post(f"/sessions/{session}/masks", json=body).json()
    mask = messages.decode_mask(answer["masks"][0]["mask"], answer["height"], answer["width"])
    np.testing.assert_array_equal(mask, np.take(ball() > 100, center[axis], axis))
    url = f"/sessions/{session}/jobs/{client.post(f'/sessions/{session}/jobs', json=body).json()['job']}"
    finished(client, url)
    labels = np.load(io.BytesIO(gzip.decompress(client.get(f"{url}/labels").content)))
    np.testing.assert_array_equal(labels, ball() > 100)


def test_clicks_on_one_slice_share_its_embedding():
    predictor = PhantomPredictor()
    with TestClient(create_app(phantom_engine(predictor=predictor))) as client:
        session, volume = opened(client)
        look = {"volume": volume, "slice": 6}
        assert client.post(f"/sessions/{session}/embeddings", json=look).status_code == 204
        click = {"object": 1, "slice": 6, "clicks": [{"x": 24, "y": 20}]}
        for prompts in ([click], [BOX], [BOX, click]):
            answer = client.post(f"/sessions/{session}/masks", json={"volume": volume, "prompts": prompts})
            assert answer.status_code == 200, answer.text
        assert predictor.num_embedded == 1


def test_a_slice_is_read_ahead_while_the_user_draws():
    predictor, drawn = PhantomPredictor(), threading.Event()
    embed = predictor.embed
    predictor.embed = lambda image: drawn.wait(10) and embed(image)
    with TestClient(create_app(phantom_engine(predictor=predictor))) as client:
        session, volume = opened(client)
        for index in (6, 7, 8):
            look = {"volume": volume, "slice": index, "wait": False}
            assert client.post(f"/sessions/{session}/embeddings", json=look).status_code == 204
        assert predictor.num_embedded == 0, "answered before anything was read"
        drawn.set()
        body = {"volume": volume, "prompts": [BOX]}
        assert client.post(f"/sessions/{session}/masks", json=body).status_code == 200
        assert predictor.num_embedded == 1, "slice 6 was read ahead; 7 and 8 came while it was"
        beyond = {"volume": volume, "slice": 99, "wait": False}
        assert client.post(f"/sessions/{session}/embeddings", json=beyond).status_code == 422


def test_a_body_beyond_the_limit_is_refused_as_it_comes():
    def pieces():
        yield b'{"volume": "'
        for _ in range(64):
            yield b"a" * 4096

    with TestClient(create_app(phantom_engine(), limits=Limits(request_bytes=1 << 16))) as client:
        session, volume = opened(client)
        for content in (b"a" * 100_000, pieces()):
            answer = client.post(f"/sessions/{session}/masks", content=content)
            assert answer.status_code == 413
            assert "larger than" in answer.json()["detail"]
        body = {"volume": volume, "prompts": [BOX]}
        assert client.post(f"/sessions/{session}/masks", json=body).status_code == 200


def test_sessions_do_not_see_each_other(client):
    first, volume = opened(client)
    second = client.post("/sessions").json()["session"]
    assert client.get(f"/sessions/{first}/volumes/{volume}").status_code == 200
    assert client.get(f"/sessions/{second}/volumes/{volume}").status_code == 404
    job = client.post(f"/sessions/{first}/jobs", json={"volume": volume, "prompts": [BOX]}).json()["job"]
    assert client.get(f"/sessions/{second}/jobs/{job}").status_code == 404
    assert client.get(f"/sessions/{second}/jobs/{job}/labels").status_code == 404


def test_closing_a_session_deletes_what_it_held(client):
    first, volume = opened(client)
    second, _ = opened(client)
    folder = client.app.state.desk.folder
    assert len(list(folder.iterdir())) == 1, "the same bytes are stored once"
    assert client.delete(f"/sessions/{first}").status_code == 204
    assert client.get(f"/sessions/{first}/volumes/{volume}").status_code == 404
    assert client.get(f"/sessions/{second}/volumes/{volume}").status_code == 200
    client.delete(f"/sessions/{second}")
    assert list(folder.iterdir()) == []


def test_idle_sessions_expire():
    with TestClient(create_app(phantom_engine(), limits=Limits(session_idle_s=0.0))) as client:
        session, volume = opened(client)
        desk = client.app.state.desk
        desk.sessions.expire()
        assert client.get(f"/sessions/{session}/volumes/{volume}").status_code == 404
        assert len(desk.sessions) == 0 and list(desk.folder.iterdir()) == []


def slow_sweep(predictor, imgs, **options):
    for step in sweep(predictor, imgs, **options):
        time.sleep(0.05)
        yield step


def test_jobs_can_be_cancelled_and_abandoned_ones_are():
    limits = Limits(job_poll_s=0.0)
    with TestClient(create_app(phantom_engine(sweep=slow_sweep), limits=limits)) as client:
        session, volume = opened(client)
        body = {"volume": volume, "prompts": [BOX]}
        urls = [
            f"/sessions/{session}/jobs/{client.post(f'/sessions/{session}/jobs', json=body).json()['job']}"
            for _ in "ab"
        ]
        assert client.get(f"{urls[0]}/labels").status_code == 409
        assert client.delete(urls[1]).status_code == 202
        assert finished(client, urls[1])["status"] == "cancelled"
        client.app.state.desk.sessions.expire()
        assert finished(client, urls[0])["status"] == "cancelled"


def test_a_click_is_answered_while_a_propagation_runs():
    with TestClient(create_app(phantom_engine(sweep=slow_sweep))) as client:
        session, volume = opened(client)
        body = {"volume": volume, "prompts": [BOX]}
        url = f"/sessions/{session}/jobs/{client.post(f'/sessions/{session}/jobs', json=body).json()['job']}"
        assert client.post(f"/sessions/{session}/masks", json=body).status_code == 200
        assert client.get(url).json()["status"] in ("queued", "running")


def test_a_job_that_cannot_work_is_refused_at_once(client):
    session, volume = opened(client)
    answer = client.post(f"/sessions/{session}/jobs", json={"volume": volume, "prompts": [{**BOX, "slice": 99}]})
    assert answer.status_code == 422 and "slice 99" in answer.json()["detail"]


def test_a_job_that_fails_says_why(client):
    session, volume = opened(client)
    body = {"volume": volume, "prompts": [BOX], "first": 7}
    job = client.post(f"/sessions/{session}/jobs", json=body).json()["job"]
    state = finished(client, f"/sessions/{session}/jobs/{job}")
    assert state["status"] == "failed" and "slices 7 to 11" in state["message"]
    assert client.get(f"/sessions/{session}/jobs/{job}/labels").status_code == 409


def zeros(num: int) -> bytes:
    return gzip.compress(bytes(num))


LIMITS = Limits(upload_bytes=20_000, volume_bytes=1 << 20, side=64, volumes_per_session=1, sessions=2)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 415),
        (b"not gzip at all", 415),
        (packed(ball())[0][:-30], 415),
        (gzip.compress(b"not npy"), 415),
        (zeros(2 << 20), 413),
        (np.random.default_rng(0).bytes(30_000), 413),
        (packed(np.zeros((2, 2)))[0], 422),
        (packed(np.zeros((1, 1, 65), np.uint8))[0], 422),
        (packed(np.zeros((0, 4, 4), np.uint8))[0], 422),
        (packed(np.full((2, 4, 4), np.nan))[0], 422),
        (packed(np.zeros((2, 4, 4), complex))[0], 422),
        (packed(np.array([[["text"]]]))[0], 422),
        (packed(np.array([[[{"a": 1}]]], dtype=object))[0], 415),
    ],
)
def test_malformed_uploads_are_refused_with_a_sentence(body, status):
    with TestClient(create_app(phantom_engine(), limits=LIMITS)) as client:
        session = client.post("/sessions").json()["session"]
        plain = b""
        with contextlib.suppress(OSError, EOFError, zlib.error):
            plain = gzip.decompress(body)
        answer = client.put(f"/sessions/{session}/volumes/{hashlib.sha256(plain).hexdigest()}", content=body)
        assert answer.status_code == status, answer.text
        assert answer.json()["detail"].endswith(".")
        assert list(client.app.state.desk.folder.iterdir()) == []


def test_a_damaged_upload_is_told_by_its_hash(client):
    session = client.post("/sessions").json()["session"]
    answer = client.put(f"/sessions/{session}/volumes/{'0' * 64}", content=packed(ball())[0])
    assert answer.status_code == 422 and "damaged" in answer.json()["detail"]


def test_limits_hold():
    with TestClient(create_app(phantom_engine(), limits=LIMITS)) as client:
        session, _ = opened(client)
        body, sha256 = packed(ball(center=(5, 20, 24)))
        assert client.put(f"/sessions/{session}/volumes/{sha256}", content=body).status_code == 429
        client.post("/sessions")
        assert client.post("/sessions").status_code == 429


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "....//etc/passwd",
        "A" * 64,
        "0" * 5000,
    ],
)
def test_paths_of_clients_lead_nowhere(client, path):
    session, _ = opened(client)
    before = sorted(client.app.state.desk.folder.iterdir())
    for url in (
        f"/sessions/{session}/volumes/{path}",
        f"/sessions/{session}/jobs/{path}/labels",
        f"/sessions/{path}/volumes/x",
    ):
        assert client.get(url).status_code in (404, 405, 422)
        assert client.put(url, content=b"x").status_code in (404, 405, 422)
    assert sorted(client.app.state.desk.folder.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"volume": "../x"}, "volume"),
        ({"prompts": []}, "prompts"),
        ({"prompts": [{"object": 1, "slice": 6}]}, "neither"),
        ({"prompts": [{**BOX, "box": [1, 2, 1, 2]}]}, "empty"),
        ({"prompts": [{**BOX, "box": [1, 2, 3]}]}, "box"),
        ({"prompts": [{**BOX, "box": [900, 900, 990, 990]}]}, "outside"),
        ({"prompts": [{**BOX, "slice": 12}]}, "slice 12"),
        ({"prompts": [{**BOX, "object": 0}]}, "object"),
        ({"prompts": [BOX, BOX]}, "one prompt"),
        ({"prompts": [BOX, {**BOX, "slice": 5}]}, "one slice"),
        ({"prompts": [{**BOX, "mask": "!"}]}, "base64"),
        ({"prompts": [{**BOX, "mask": base64.b64encode(zlib.compress(bytes(9))).decode()}]}, "bits"),
        ({"axis": 3}, "axis"),
        ({"window": [40, 0]}, "window"),
        ({"model": "/etc/passwd"}, "no model"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_wrong_requests_get_one_sentence(client, change, words):
    session, volume = opened(client)
    answer = client.post(f"/sessions/{session}/masks", json={"volume": volume, "prompts": [BOX], **change})
    assert answer.status_code in (404, 422)
    assert words in answer.json()["detail"] and "\n" not in answer.json()["detail"]


def test_the_key_is_asked_for_everywhere_but_healthz():
    with TestClient(create_app(phantom_engine(), api_key="correct horse battery")) as client:
        assert client.get("/healthz").status_code == 200
        for headers in ({}, {"X-API-Key": "wrong"}, {"X-API-Key": "correct horse batterx"}):
            for method, path in (
                ("POST", "/sessions"),
                ("GET", "/models"),
                ("GET", "/openapi.json"),
                ("GET", "/nothing"),
            ):
                assert client.request(method, path, headers=headers).status_code == 401
        assert client.post("/sessions", headers={"X-API-Key": "correct horse battery"}).status_code == 201


def test_a_web_page_cannot_reach_a_local_server_by_another_name(client):
    assert client.get("/models", headers={"Host": "evil.example:8642"}).status_code == 421
    assert client.get("/models", headers={"Host": "localhost:8642"}).status_code == 200


def test_binding_to_the_network_needs_a_key():
    check_binding("127.0.0.1", None)
    check_binding("::1", None)
    check_binding("0.0.0.0", "k" * 16)
    with pytest.raises(ConfigError, match="API key"):
        check_binding("0.0.0.0", None)
    with pytest.raises(ConfigError, match="shorter"):
        check_binding("127.0.0.1", "short")


def test_a_client_that_dies_while_uploading_leaves_nothing(server_url):
    import socket

    session = httpx.post(f"{server_url}/sessions").json()["session"]
    host, port = server_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as line:
        head = f"PUT /sessions/{session}/volumes/{'0' * 64} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100000\r\n\r\n"
        line.sendall(head.encode() + b"half a volume")
    for _ in range(100):
        health = httpx.get(f"{server_url}/healthz").json()
        if health["stored_mib"] == 0:
            break
    assert health["status"] == "ok"


def test_a_real_network_answers(tmp_path):
    from medsam2_ft.deploy.engine import Engine

    with TestClient(create_app(Engine({"nano": "sam2.1_nano@random"}, device="cpu"))) as client:
        session, volume = opened(client, ball(shape=(4, 40, 48), center=(2, 20, 24)).astype(np.int16))
        prompts = [{**BOX, "slice": 2}, {"object": 4, "slice": 2, "clicks": [{"x": 24, "y": 20}]}]
        whole = messages.encode_mask(np.ones((40, 48), bool))
        prompts.append({"object": 5, "slice": 2, "mask": whole, "clicks": [{"x": 1, "y": 1, "positive": False}]})
        body = {"volume": volume, "prompts": prompts}
        answer = client.post(f"/sessions/{session}/masks", json=body)
        assert [mask["object"] for mask in answer.json()["masks"]] == [3, 4, 5], answer.text
        url = f"/sessions/{session}/jobs/{client.post(f'/sessions/{session}/jobs', json=body).json()['job']}"
        assert finished(client, url)["status"] == "done"
