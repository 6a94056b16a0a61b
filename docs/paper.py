"""Writes what a run of the paper's experiment says into pages.

``python docs/paper.py RUN_FOLDER README.md docs/paper.md`` replaces, in each page, what stands
between the lines ``<!-- paper: NAME -->`` and ``<!-- /paper -->`` by the part with that name, and
puts the run's figures beside this file. Without pages it prints all parts.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

from fedcats.environment import say
from fedcats.report import split, tables, verdict, view
from fedcats.results import Results


def answer(results: Results) -> str:
    """The first lines."""
    return " ".join(verdict.answer(results))


def each_model(results: Results) -> str:
    """Each model's scores beside the paper's, of the first seed."""
    return _markdown(tables.paper(results, submodels=False))


def by_seed(folder: Path, results: Results) -> str:
    """The accuracy of each model in one place or merged, and the clients' median, by seed."""
    paths = sorted(folder.glob("seed-*/results.json"), key=lambda p: int(p.parent.name[5:]))
    runs = [results, *(json.loads(path.read_text(encoding="utf-8")) for path in paths)]
    names = [name for name in view.ordered(results) if not name.startswith("submodel/")]
    found = [
        [
            *(run["models"][name]["accuracy"] for name in names),
            median(model["accuracy"] for model in view.submodels(run).values()),
        ]
        for run in runs
    ]
    rows = [
        (str(run["seed"]), *(f"{value:.4f}" for value in row))
        for run, row in zip(runs, found, strict=True)
    ]
    rows.append(("mean", *(f"{mean(column):.4f}" for column in zip(*found, strict=True))))
    header = ("seed", *(view.title(results, name) for name in names), "median client")
    return tables.to_markdown(tables.Table("", header, rows))


def over_seeds(results: Results) -> str:
    """Each merged model minus the centralized one, over seeds."""
    return _markdown(tables.over_seeds(view.replication(results)))


def measures(results: Results) -> str:
    """The same for each measure, and what moves it."""
    return _markdown(tables.measures_over_seeds(view.replication(results)))


def parts(results: Results) -> str:
    """What fewer steps cost, and what keeping photos apart costs."""
    return _markdown(split.over_seeds_of(results) or split.in_one_run(results))


def comparison(results: Results) -> str:
    """Each merged model minus the centralized one, of the first seed."""
    return _markdown(tables.comparison(results))


def made(results: Results) -> str:
    """Where, on what and how long."""
    machine, data, config = results["machine"], results["data"], results["config"]
    seeds = config.get("seeds")
    how_many = f"seeds={seeds}" if seeds else f"seed={results['seed']}"
    trained, reused = (len(results["store"][key]) for key in ("trained", "reused"))  # type: ignore[literal-required]
    return (
        f"{machine['workers']} workers on {machine['cores']} cores ({machine['processor']}, "
        f"{machine['device']}), {how_many}, {sum(data['train'].values()):,} training and "
        f"{sum(data['test'].values()):,} test photos, initial weights "
        f"{results['weights']['source']}; {view.duration(results['seconds']['total'])} for "
        f"{trained} trainings ({reused} more were in the store); fedcats "
        f"{results['versions']['fedcats']}, PyTorch {results['versions']['torch']}."
    )


def _markdown(table: tables.Table | None) -> str:
    if table is None:
        return "This run has none."
    return tables.to_markdown(table) + (f"\n{table.note}" if table.note else "")


PARTS: tuple[Callable[[Results], str], ...] = (
    answer, each_model, over_seeds, measures, parts, comparison, made,
)  # fmt: skip


def written(page: str, texts: dict[str, str]) -> str:
    """The page with the parts that it names."""

    def part(found: re.Match[str]) -> str:
        return f"{found[1]}\n\n{texts[found[2]].strip()}\n\n{found[3]}"

    pattern = r"(<!-- paper: (\w+) -->)\n.*?(<!-- /paper -->)"
    return re.sub(pattern, part, page, flags=re.DOTALL)


def main(folder: Path, *pages: Path) -> None:
    """See the module."""
    results: Results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    texts = {part.__name__: part(results) for part in PARTS} | {"by_seed": by_seed(folder, results)}
    for page in pages:
        page.write_text(written(page.read_text(encoding="utf-8"), texts), encoding="utf-8")
    if not pages:
        for line in "\n\n".join(f"## {name}\n\n{text}" for name, text in texts.items()).split("\n"):
            say(line)
        return
    for name in ("scores", "seeds"):
        if (figure := folder / f"figures/{name}.png").is_file():
            shutil.copyfile(figure, Path(__file__).parent / f"paper-{name}.png")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
