"""A stock Flower app, as the quickstart has it, in Flower's simulation.

    python benchmarks/rivals/stock_flower.py ROOT [--clients 10] [--untrained]

A model is built for every message, weights travel as arrays, Flower's own FedAvg holds all replies
of the round. One CPU a client, so that as many train at once as there are cores.
"""

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from common import arguments, new_model, photos, shard, train
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

given = arguments(__doc__).parse_args()
client_app, server_app = ClientApp(), ServerApp()


@client_app.train()
def train_client(message: Message, context: Context) -> Message:
    """One client's part."""
    model = new_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    examples = 2 * given.per_class
    if not given.untrained:
        client = int(context.node_config["partition-id"])
        train(model, shard(photos(given.root, "train"), client, given.per_class), given.epochs)
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": examples}),
    }
    return Message(RecordDict(content), reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """One round."""
    strategy = FedAvg(
        fraction_evaluate=0.0, min_train_nodes=given.clients, min_available_nodes=given.clients
    )
    start = ArrayRecord(new_model().state_dict())
    result = strategy.start(grid, start, num_rounds=1, timeout=1e6)
    if len(result.arrays) != len(start):
        raise RuntimeError("no model came back")
    print("merged")


if __name__ == "__main__":
    resources = {"num_cpus": 1}
    workers = {"num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False}
    backend = {"client_resources": resources, "init_args": workers}
    run_simulation(server_app, client_app, given.clients, backend_config=backend)
