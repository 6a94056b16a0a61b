"""Downloads from a server on this machine that can be made to misbehave."""

import hashlib
import http.server
import threading

import pytest

from fedcats.data import catalogue, download, downloaded
from fedcats.data.download import fetch
from fedcats.errors import UserError

CONTENT = bytes(range(256)) * 20_000  # 5 MB
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; breaks off after `breaks` bytes of each of the first answers."""

    breaks: tuple[int, ...] = ()
    ranges = True
    asked: list[str | None]
    content = CONTENT


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        assert isinstance(server, Server)
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        start = int(wanted[6:-1]) if wanted and server.ranges else 0
        if start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if wanted and server.ranges else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if len(server.asked) <= len(server.breaks):
            body = body[: server.breaks[len(server.asked) - 1]]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def url(server):
    return f"http://127.0.0.1:{server.server_port}/photos.zip"


def get(server, folder, checksum=SHA256, **options):
    return fetch(url(server), folder / "photos.zip", checksum, "do this instead", **options)


def test_a_download_is_shown_and_kept(server, tmp_path):
    calls = []
    path = get(server, tmp_path / "new", on_progress=lambda *done: calls.append(done))
    assert path.read_bytes() == CONTENT
    assert calls[-1] == (len(CONTENT), len(CONTENT))
    assert all(total == len(CONTENT) for _, total in calls)
    get(server, tmp_path / "new")
    assert server.asked == [None]


def test_an_interrupted_download_asks_for_the_rest(server, tmp_path):
    server.breaks = (2_000_000, 1_500_000)
    calls = []
    path = get(server, tmp_path, on_progress=lambda *done: calls.append(done))
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=2000000-", "bytes=3500000-"]
    assert calls == sorted(calls)
    assert not list(tmp_path.glob("*.part"))


def test_a_later_call_goes_on_where_the_first_stopped(server, tmp_path):
    server.breaks = (3_000_000, 0)
    with pytest.raises(UserError, match=r"cannot be reached for photos.zip \(.*\): do this inst"):
        get(server, tmp_path)
    assert (tmp_path / "photos.zip.part").stat().st_size == 3_000_000
    assert not (tmp_path / "photos.zip").exists()
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=3000000-"


def test_a_server_that_cannot_resume_sends_all_again(server, tmp_path):
    server.ranges = False
    server.breaks = (3_000_000,)
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_complete_part_is_only_checked(server, tmp_path):
    (tmp_path / "photos.zip.part").write_bytes(CONTENT)
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_another_file_than_expected_is_thrown_away(server, tmp_path):
    server.content = b"<html>not found</html>"
    with pytest.raises(UserError, match=r"sent another file than expected \(sha256 .*do this inst"):
        get(server, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_a_damaged_part_is_thrown_away_too(server, tmp_path):
    (tmp_path / "photos.zip.part").write_bytes(b"other" * 100)
    with pytest.raises(UserError, match="another file than expected"):
        get(server, tmp_path)
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_md5_where_nothing_better_is_published(server, tmp_path):
    checksum = "md5:" + hashlib.md5(CONTENT).hexdigest()
    assert get(server, tmp_path, checksum).read_bytes() == CONTENT


@pytest.fixture
def nobody(monkeypatch):
    """An address of this machine at which nobody answers."""
    with Server(("127.0.0.1", 0), Handler) as server:
        address = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setattr(downloaded, "PETIMAGES_URL", address + "kagglecatsanddogs_5340.zip")
    monkeypatch.setattr(downloaded, "OXFORD_URL", address)
    return address


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        (
            "petimages",
            {"test_fraction": 0.25},
            r"127.0.0.1:\d+ cannot be reached for kagglecatsanddogs_5340.zip \(.*refused\): get "
            r"kagglecatsanddogs_5340.zip elsewhere and use data=kaggle data.root=kaggle",
        ),
        (
            "oxford_pets",
            {"root": None},
            r"cannot be reached for images.tar.gz \(.*refused\): unpack it elsewhere as torchv",
        ),
    ],
)
def test_a_host_out_of_reach_is_one_line_with_advice(nobody, tmp_path, name, params, message):
    with pytest.raises(UserError, match=message) as error:
        catalogue.SOURCES[name](**params).open(0, tmp_path)
    assert "\n" not in str(error.value)


def test_a_host_that_does_not_answer(monkeypatch, tmp_path):
    import socket

    monkeypatch.setattr(download, "TIMEOUT", 0.05)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/photos.zip"
        with pytest.raises(UserError, match=r"cannot be reached .*timed out"):
            fetch(address, tmp_path / "photos.zip", SHA256, "do this instead")
