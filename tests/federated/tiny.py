"""A tiny federation, as overrides."""

from pathlib import Path

from conftest import quick_baseline

from fedcats.config.compose import compose_config
from fedcats.experiment.run import run

TINY = [
    "mode=federated",
    "data.train_per_class=6",
    "data.test_per_class=3",
    "partition=paper",
    "partition.per_class=3",
    "partition.num_shards=2",
    "train.epochs=1",
    "model.name=squeezenet1_1",
    "model.weights=none",
    "strategy.rules=[polyak]",
    "reference=[full]",
    "figures=[]",
]
LONG = ["train.epochs=12", "store.checkpoint_seconds=0"]


def simulation(folder: Path, *overrides: str) -> Path:
    raw = compose_config([*TINY, "runner=local", "save_models=true", *overrides])
    with quick_baseline():
        run(raw, folder)
    return folder
