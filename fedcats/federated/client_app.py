"""Flower's ClientApp: adapts the NumPyClient to the Message API."""

import sys
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import Scalar

from fedcats.federated.client import FedcatsClient
from fedcats.federated.flower_patches import use_own_parts
from fedcats.federated.flower_words import SIMULATION
from fedcats.federated.secure import ACTION, remember
from fedcats.federated.secure import answer as answer_secure
from fedcats.federated.sites import answer
from fedcats.federated.wire import arrays_of, open_at_site

app = ClientApp()

if sys.argv[0].endswith(SIMULATION):  # loads this module before it makes Ray's actors
    use_own_parts()


@app.query()
def query(message: Message, context: Context) -> Message:
    """A site's answer to who it is and what it has."""
    return Message(answer(message.content, context), reply_to=message)


@app.query(ACTION)
def secure_sum(message: Message, context: Context) -> Message:
    """One of the questions of a secure sum."""
    return Message(answer_secure(message.content, context), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One client's part of a round; an exception becomes an error reply that the server reads."""
    config = cast(dict[str, Scalar], dict(cast(ConfigRecord, message.content["config"])))
    at_site, secure = "classes" in config, bool(config.get("secure"))
    if at_site:
        config = open_at_site(message.content, context)
    _, examples, info = FedcatsClient().fit([], config)
    if secure:
        remember(context, config, str(info["key"]))
    sent = at_site and not secure
    arrays = arrays_of(config, str(info["key"])) if sent else {"arrays": ArrayRecord()}
    content = RecordDict(
        {
            **arrays,
            "metrics": MetricRecord({"num-examples": examples}),
            "info": ConfigRecord({**info, "examples": examples}),
        }
    )
    return Message(content, reply_to=message)
