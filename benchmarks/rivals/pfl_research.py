"""The same in pfl (apple/pfl-research), in an environment of its own: pip install 'pfl[pytorch]'.

    python benchmarks/rivals/pfl_research.py ROOT [--clients 10] [--untrained]

One process, one model object, running sums; photos through a DataLoader as for the other rivals.
"""

import itertools
from typing import Any

import torch
from common import BATCH, LR, arguments, new_model, photos, shard
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchDataDataset
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn


class Net(nn.Module):
    """AlexNet as pfl wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = new_model()

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross entropy."""
        self.train()
        return nn.functional.cross_entropy(self.net(x), y)

    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        """None: nothing is evaluated here."""
        return {}


class Untrained(FederatedAveraging):  # type: ignore[misc]
    """Clients send back what they got."""

    def train_one_user(
        self, initial_model_state: Any, model: Any, user_dataset: Any, central_context: Any
    ) -> Any:
        """The difference, which is zero."""
        return model.get_model_difference(initial_model_state), Metrics()


def main() -> None:
    """Entry point."""
    given = arguments(__doc__).parse_args()
    torch.manual_seed(0)
    training = photos(given.root, "train")
    clients = itertools.cycle(range(given.clients))
    users = FederatedDataset(
        lambda client: PyTorchDataDataset(
            shard(training, client, given.per_class), user_id=str(client), shuffle=True
        ),
        lambda: next(clients),
    )
    net = Net()
    model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), 1.0))
    algorithm = Untrained() if given.untrained else FederatedAveraging()
    algorithm.run(
        NNAlgorithmParams(
            central_num_iterations=1,
            evaluation_frequency=10,
            train_cohort_size=given.clients,
            val_cohort_size=None,
        ),
        SimulatedBackend(users, users),
        model,
        NNTrainHyperParams(
            local_num_epochs=given.epochs, local_learning_rate=LR, local_batch_size=BATCH
        ),
        NNEvalHyperParams(local_batch_size=BATCH),
    )
    print("merged")


if __name__ == "__main__":
    main()
