"""What a site, an outsider and the control machine reach of a real federation, gate and all.

One federation of two sites serves all tests; nothing is trained.
"""

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import wait_until
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.proto.control_pb2 import ListNodesRequest, ListNodesResponse, RegisterNodeRequest
from flwr.proto.fleet_pb2 import PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.superlink.routers.control import router as control_router
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from intruder import Intruder

from fedcats.deploy import certificates
from fedcats.deploy.files import LINK, renew, write_federation
from fedcats.deploy.rehearsal import Loopback
from fedcats.federated import superlink

PROTOBUF = {"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE}
CONTROL = sorted(route.path for route in control_router.routes)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    place = tmp_path_factory.mktemp("gate")
    photos = [place / f"photos-{site}" for site in range(2)]
    for site, folder in enumerate(photos):
        folder.mkdir()
        (folder / "cat.jpg").write_text(f"the cat of site {site}")
    with Loopback(place / "federation", photos, place / "home") as running:
        wait_until(lambda: len(nodes(running)) == 2 and set(nodes(running).values()) == {"online"})
        yield running


def client(federation: Loopback, certificate: Path | None = None) -> httpx.Client:
    """Of the gate: with that certificate and the key beside it, or without."""
    context = ssl.create_default_context(cafile=federation.folder / "node-0/ca.crt")
    if certificate:
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    return httpx.Client(verify=context, base_url=f"https://127.0.0.1:{federation.port}")


def nodes(federation: Loopback) -> dict[int, str]:
    """The registered SuperNodes and their status, as the control machine sees them."""
    with client(federation, federation.folder / "control/control.crt") as control:
        content = ListNodesRequest().SerializeToString()
        answer = control.post("/v1/control/list-nodes", content=content, headers=PROTOBUF)
    listed = ListNodesResponse()
    listed.ParseFromString(answer.raise_for_status().content)
    return {node.node_id: node.status for node in listed.nodes_info}


def call(federation: Loopback, key_file: Path, name: str, message: Any) -> int:
    """Of the fleet's API, signed with a site's key: the HTTP status."""
    key: Any = load_ssh_private_key(key_file.read_bytes(), None)
    signer = NodeAuthHttpInterceptor(key, key.public_key())
    content = message.SerializeToString()
    with client(federation) as site:
        request = site.build_request("POST", f"/v1/fleet/{name}", content=content, headers=PROTOBUF)
        context = ProtobufRequestContext(name, message, request)
        return signer.intercept(context, lambda one: site.send(one.request)).status_code


def intruders_key(folder: Path) -> Path:
    """A key pair that nobody has registered: the public part's file."""
    write_federation(folder, 1, "127.0.0.1:1")
    return folder / "node-0/node.pub"


def test_a_site_gets_nothing_by_an_app_of_its_own(federation: Loopback, tmp_path: Path) -> None:
    """With what site 0 has: its folder, and the address."""
    before = nodes(federation)
    site = Intruder(tmp_path / "site", federation.folder / "node-0/ca.crt", federation.port)
    key = intruders_key(tmp_path / "other")
    for command in (
        ["run", str(site.app), "x"],
        ["list", "x"],
        ["supernode", "list", "x"],
        ["supernode", "register", str(key), "x"],
        ["supernode", "unregister", str(next(iter(before))), "x"],
        ["stop", "1", "x"],
    ):
        answer = site.flwr(*command)
        assert answer["success"] is False, command
        assert "403" in str(answer), answer
    assert nodes(federation) == before
    assert site.app.name not in federation.log("superexec")

    # The same app where there is no gate: this is what the gate keeps away. Whoever may log in to
    # the server's machine is there (docs/security.md).
    local = Intruder(tmp_path / "local", federation.folder / "node-0/ca.crt", federation.inner)
    loot: list[str] = []
    run_id = str(local.flwr("run", str(local.app), "x")["run-id"])
    superlink.follow(run_id, "x", loot.append, local.environment)
    taken = "\n".join(line for line in loot if line.startswith("LOOT"))
    assert "BEGIN PRIVATE KEY" in taken
    assert all(f"the cat of site {site}" in taken for site in range(2))
    assert taken.count("BEGIN OPENSSH PRIVATE KEY") == 2


@pytest.mark.parametrize("path", CONTROL)
def test_no_call_of_the_control_api_passes_without_the_certificate(
    federation: Loopback, path: str
) -> None:
    with client(federation) as outsider:
        for spelling in (path, f"/{path}", path.replace("control", "fleet/../control"),
                         path.replace("control", "fleet/..%2fcontrol"),
                         path.replace("v1", "%761"), path.replace("/v1", "/v1/./")):  # fmt: skip
            url = httpx.URL(str(outsider.base_url)).copy_with(raw_path=spelling.encode())
            assert outsider.post(url, headers=PROTOBUF).status_code in (403, 404), spelling
        assert outsider.post(path, headers=PROTOBUF).status_code == 403


@pytest.mark.parametrize(
    "path", ["/docs", "/openapi.json", "/v1/runtime/responses", "/v1/runtime/pull-app-inputs",
             "/v1/runtime/register-task", "/", "/v1/fleet/", "/v1/fleet/x/y", "/v1/control"]
)  # fmt: skip
def test_nothing_else_passes_even_for_the_control_machine(federation: Loopback, path: str) -> None:
    with client(federation, federation.folder / "control/control.crt") as control:
        assert control.post(path, headers=PROTOBUF).status_code == 404
        assert control.get(path).status_code == 404


def test_only_that_very_certificate_opens_the_control_api(
    federation: Loopback, tmp_path: Path
) -> None:
    """Not one of the same name, nor any that the authority has signed."""
    key = certificates.new_key()
    (tmp_path / "same-name.crt").write_bytes(certificates.pem(certificates.control(key, 9)))
    (tmp_path / "same-name.key").write_bytes(certificates.private(key))
    for name in ("server.crt", "server.key"):
        shutil.copy(federation.folder / "server" / name, tmp_path)
    for name in ("same-name", "server"):
        with client(federation, tmp_path / f"{name}.crt") as stranger:
            answer = stranger.post("/v1/control/list-runs", headers=PROTOBUF)
        assert answer.status_code == 400, name


def test_a_key_that_is_not_registered_opens_nothing(federation: Loopback, tmp_path: Path) -> None:
    """Nor does the fleet's API register it; nor does a site's key speak for another site."""

    before = nodes(federation)
    foreign = intruders_key(tmp_path / "other")
    public = public_key_to_bytes(load_ssh_public_key(foreign.read_bytes()))  # type: ignore[arg-type]
    registration = RegisterNodeFleetRequest(public_key=public)
    assert call(federation, foreign.with_suffix(".key"), "register-node", registration) >= 400
    own = federation.folder / "node-0/node.key"
    for key, allowed in ((own, [200, 401]), (foreign.with_suffix(".key"), [401, 401])):
        pulls = (PullMessagesRequest(node=Node(node_id=node)) for node in before)
        assert sorted(call(federation, key, "pull-messages", pull) for pull in pulls) == allowed
    assert nodes(federation) == before


def test_the_control_folder_may_be_moved(federation: Loopback, tmp_path: Path) -> None:
    moved = tmp_path / 'it\'s "my" $(control) folder'
    shutil.copytree(federation.folder / "control", moved)
    script = [str(moved / "flwr.sh"), "supernode", "list", LINK, "--format", "json"]
    done = subprocess.run(
        script, env=federation.environment_of(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(str(node) in done.stdout for node in nodes(federation))


def test_renewed_certificates_lock_the_old_ones_out_and_the_sites_stay(
    federation: Loopback, tmp_path: Path
) -> None:
    old = tmp_path / "control"
    shutil.copytree(federation.folder / "control", old)
    before = nodes(federation)
    served = (federation.folder / "server/server.crt").read_bytes()
    renew(federation.folder, 30)
    assert (federation.folder / "server/server.crt").read_bytes() != served
    for name in ("gate", "superlink"):
        federation.kill(name)
        federation.start(name)
    federation.wait_for("gate", "superlink")
    wait_until(lambda: nodes(federation) == before)
    with client(federation, old / "control.crt") as late:
        assert late.post("/v1/control/list-runs", headers=PROTOBUF).status_code == 400
    with client(federation) as outsider:
        content = RegisterNodeRequest().SerializeToString()
        answer = outsider.post("/v1/control/register-node", content=content, headers=PROTOBUF)
        assert answer.status_code == 403
    # Sites that come back do so with the keys and the authority's certificate that they have.
    started = federation.log("node-0").count("SuperNode ID: ")
    federation.processes["node-0"].terminate()
    federation.processes["node-0"].wait()
    federation.start("node-0")
    wait_until(lambda: federation.log("node-0").count("SuperNode ID: ") > started)
    assert nodes(federation).keys() == before.keys()


def test_a_site_that_is_unregistered_is_locked_out(federation: Loopback) -> None:
    lost = federation.folder / "node-1/node.key"
    before = nodes(federation)
    pulls = {node: PullMessagesRequest(node=Node(node_id=node)) for node in before}
    (node,) = (n for n in before if call(federation, lost, "pull-messages", pulls[n]) == 200)
    script = federation.folder / "control/flwr.sh"
    command = [str(script), "supernode", "unregister", str(node), LINK]
    subprocess.run(command, env=federation.environment_of(), check=True, capture_output=True)
    assert nodes(federation).get(node) != "online"
    assert call(federation, lost, "pull-messages", pulls[node]) == 401
