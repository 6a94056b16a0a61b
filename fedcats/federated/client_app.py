"""Flower's ClientApp: adapts the NumPyClient to the Message API."""

from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import Scalar

from fedcats.federated.client import FedcatsClient

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One client's part of a round; an exception becomes an error reply that the server reads."""
    arrays = cast(ArrayRecord, message.content["arrays"]).to_numpy_ndarrays()
    config = cast(dict[str, Scalar], dict(cast(ConfigRecord, message.content["config"])))
    arrays, examples, info = FedcatsClient().fit(arrays, config)
    content = RecordDict(
        {
            "arrays": ArrayRecord(arrays),
            "metrics": MetricRecord({"num-examples": examples}),
            "info": ConfigRecord(info),  # type: ignore[arg-type]
        }
    )
    return Message(content, reply_to=message)
