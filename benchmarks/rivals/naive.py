"""The script that one writes first: no Flower, one model after another, torch's own threads.

    python benchmarks/rivals/naive.py ROOT [--clients 10] [--baseline] [--test 506] [--merges 1]

A DataLoader decodes every photo in every epoch, sub-models are trained one after another and
merged by the sequential Polyak average, every model is tested at batch 4.
"""

import torch
from common import BATCH, arguments, new_model, photos, shard, train
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


def polyak(states: list[dict[str, Tensor]], beta: float) -> dict[str, Tensor]:
    """The paper's listing."""
    merged = {key: value.clone() for key, value in states[0].items()}
    for state in states[1:]:
        for key, value in state.items():
            merged[key] = beta * value + (1 - beta) * merged[key]
    return merged


def test(model: nn.Module, data: Dataset[tuple[Tensor, int]]) -> int:
    """How many of the test photos are classified rightly."""
    model.eval()
    right = 0
    with torch.no_grad():
        for x, y in DataLoader(data, batch_size=BATCH):
            right += int((model(x).argmax(1) == y).sum())
    return right


def main() -> None:
    """Entry point."""
    parser = arguments(__doc__)
    parser.add_argument("--baseline", action="store_true", help="also train on all shards at once")
    parser.add_argument("--test", type=int, default=0, help="test photos of each class")
    parser.add_argument("--merges", type=int, default=1, help="with so many betas")
    parser.add_argument("--decode", action="store_true", help="only read every training photo once")
    given = parser.parse_args()
    torch.manual_seed(0)
    training = photos(given.root, "train")
    if given.decode:
        for _ in DataLoader(training, batch_size=BATCH):
            pass
        return
    testing = shard(photos(given.root, "test"), 0, given.test)
    start = new_model().state_dict()

    def trained(data: Dataset[tuple[Tensor, int]]) -> nn.Module:
        model = new_model()
        model.load_state_dict(start)
        if not given.untrained:
            train(model, data, given.epochs)
        return model

    clients = [trained(shard(training, i, given.per_class)) for i in range(given.clients)]
    tested = list(clients)
    states = [model.state_dict() for model in clients]
    for number in range(given.merges if clients else 0):
        merged = new_model()
        merged.load_state_dict(polyak(states, (number + 1) / (given.merges + 1)))
        tested.append(merged)
    if given.baseline:
        everything = shard(training, 0, given.per_class * max(1, given.clients))
        tested.append(trained(everything))
    if given.test:
        print("right:", *(test(model, testing) for model in tested))


if __name__ == "__main__":
    main()
