"""Results as a person looks at them in Python: in a terminal, in a notebook, as a data frame."""

from __future__ import annotations

import base64
import copy
import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from fedcats.errors import UserError
from fedcats.report import cautions, tables, verdict, view
from fedcats.results import Model, Results
from fedcats.results.names import is_submodel

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_DRAWN = ("seeds", "scores", "difference")  # of them the first that there is, under the answer


class Finished(Protocol):
    """A run: its results, and the folder with its predictions."""

    folder: Path
    results: Results


@dataclass(frozen=True)
class Picture:
    """A figure of the report, shown by a notebook.

    Attributes
    ----------
    name, caption
        As in the report; the caption says what it shows.
    figure
        Matplotlib's.
    """

    name: str
    caption: str
    figure: Figure

    def save(self, path: str | Path, width: float | None = None) -> None:
        """Write it as PNG, SVG or PDF, by the ending of the name.

        Parameters
        ----------
        width
            In inches; letters become smaller, too, but not much. With several panels, below 5
            inches, they may not have room.
        """
        from fedcats.report.drawing import fit, style, to_svg

        figure = self.figure
        with style():
            if width is not None:
                figure = copy.deepcopy(figure)
                fit(figure, width)
            if Path(path).suffix == ".svg":
                Path(path).write_text(to_svg(figure), encoding="utf-8")
            else:
                figure.savefig(path)

    def _repr_html_(self) -> str:
        from fedcats.report.drawing import style, to_svg

        with style():
            text = base64.b64encode(to_svg(self.figure).encode()).decode()
        caption = html.escape(self.caption)
        return (
            f'<figure><img alt="{caption}" style="max-width: 100%; background: #fff" '
            f'src="data:image/svg+xml;base64,{text}"><figcaption>{caption}</figcaption></figure>'
        )


class Shown:
    """Results, and every way to look at them.

    Attributes
    ----------
    results
        As in ``results.json``.
    """

    def __init__(self, results: Results, folder: Path | None = None) -> None:
        self.results = results
        self._folder = folder

    @property
    def models(self) -> dict[str, Model]:
        """The models by name, with their scores: ``models["polyak"]["accuracy"]``."""
        return self.results["models"]

    @property
    def verdict(self) -> str:
        """The answer in words, and what a reader must know first."""
        return " ".join([*cautions.warnings(self.results), *self._answer()])

    @property
    def figures(self) -> list[str]:
        """Names of the figures that there are for `figure`."""
        return [name for name in self._drawings() if self._draw(name) is not None]

    def figure(self, name: str = "scores") -> Picture:
        """Draw a figure of the report.

        Raises
        ------
        UserError
            When there is none of that name, or nothing to draw in it.
        """
        found = self._draw(name)
        if found is None:
            raise UserError(f"figure {name!r}: allowed are here {', '.join(self.figures)}")
        return found

    def frame(self) -> pd.DataFrame:
        """All scores as a pandas frame, one row a model.

        The columns from ``difference`` on are of merged models that are compared: accuracy minus
        the centralized one's, with its interval and the p value of the exact McNemar test.
        """
        import pandas as pd

        rows = []
        for name, model in view.ordered(self.results).items():
            row: dict[str, Any] = {"model": name, "title": view.title(self.results, name)}
            row |= {key: view.score(self.results, model, key) for key in view.MEASURES}
            row["n"] = model["n"]
            if found := self.results["comparison"].get(name):
                row |= {**found["accuracy"], "mcnemar_p": found["mcnemar_p"]}
            rows.append(row)
        return pd.DataFrame(rows).set_index("model")

    def show(self) -> None:
        """Show the answer, the tables and a figure: in a notebook, else in the terminal."""
        from fedcats.report.console import SafeConsole
        from fedcats.report.terminal import print_summary

        console = SafeConsole()
        if console.is_jupyter:
            from IPython.display import HTML, display

            display(HTML(self._repr_html_()))  # type: ignore[no-untyped-call]
        else:
            print_summary(self.results, self._folder, console)

    def _repr_html_(self) -> str:
        said = [*(f"<p><em>{html.escape(one)}</em></p>" for one in cautions.warnings(self.results))]
        said += [f"<p><strong>{html.escape(' '.join(self._answer()))}</strong></p>"]
        for table in self._tables():
            if table is not None:
                said += [f"<h4>{html.escape(table.title)}</h4>", tables.to_html(table)]
        drawn = next((one for name in _DRAWN if (one := self._draw(name))), None)
        return "\n".join([*said, drawn._repr_html_() if drawn else ""])

    def _answer(self) -> list[str]:
        if "grid" in self.results:
            from fedcats.report.sweep import grid_rows, sweep_verdict

            return sweep_verdict(grid_rows(self.results))
        return verdict.answer(self.results)

    def _tables(self) -> list[tables.Table | None]:
        if "grid" in self.results:
            from fedcats.report.sweep import grid_rows, points_table

            return [points_table(grid_rows(self.results))]
        few = len(view.submodels(self.results)) <= view.MANY_CLASSES
        return [
            tables.over_seeds(view.replication(self.results)),
            tables.scores(self.results, submodels=few),
            tables.comparison(self.results, counts=False),
            tables.paper(self.results, submodels=False),
        ]

    def _drawings(self) -> Mapping[str, tuple[str, Any]]:
        from fedcats.report.figures import drawings

        nowhere = Path(os.devnull)  # losses are then taken from the results
        return drawings(self.results, self._folder or nowhere)

    def _draw(self, name: str) -> Picture | None:
        from fedcats.report.drawing import style

        caption, draw = self._drawings().get(name, ("", lambda: None))
        with style():
            figure = draw()
        return figure and Picture(name, caption, figure)


def beside(base: Finished, federated: Finished, merged: Sequence[Finished]) -> Results:
    """Results in which merged models stand beside a centralized one.

    Parameters
    ----------
    base
        The run with the centralized model.
    federated
        Whose clients' models and data are shown.
    merged
        Runs whose merged models are compared with it, photo by photo. Of two models with one name
        the later one is called by its title.

    Raises
    ------
    UserError
        When they were not tested on the same photos.
    """
    from fedcats.metrics import read_predictions
    from fedcats.metrics.against import compare_each
    from fedcats.seeding import derive_seed

    models: dict[str, Model] = {"centralized": base.results["models"]["centralized"]}
    predicted, thresholds = {}, {}
    path = base.folder / models["centralized"]["predictions"]
    reference = read_predictions(path)
    seed = derive_seed(federated.results["seed"], "bootstrap")
    digest = base.results["data"]["digest"]["test"]
    own = {name: model for name, model in federated.results["models"].items() if is_submodel(name)}
    for run in (federated, *merged):
        if run.results["data"]["digest"]["test"] != digest:
            raise UserError(f"{run.folder}: was tested on other photos than {base.folder}")
    for run in merged:
        for name, model in view.merged(run.results).items():
            key = name if name not in models else view.title(run.results, name)
            models[key] = model
            predicted[key] = read_predictions(run.folder / model["predictions"]).probabilities
            if "threshold" in model and "threshold" in models["centralized"]:
                own_value, other = model["threshold"], models["centralized"]["threshold"]
                thresholds[key] = own_value["value"], other["value"]
    whole = federated.results | {
        "models": models | own,
        "comparison": compare_each(
            reference.labels,
            predicted,
            reference.probabilities,
            seed=seed,
            thresholds=thresholds,
        ),
        "store": {},
    }
    for part in (
        "replication",
        "split",
        "split_over_seeds",
        "rounds",
        "grid",
        "explained",
        "privacy",
        "dp",
    ):
        whole.pop(part, None)
    return cast(Results, whole)
