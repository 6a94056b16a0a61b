"""The command ``fedcats``: Hydra's command line with errors in one line and exit codes.

Heavy imports wait until a job starts, so that ``--help`` is quick.
"""

import itertools
import math
import os
import re
import shlex
import sys
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fedcats import ending
from fedcats.cli.sweep_report import report_unfinished
from fedcats.config import paths
from fedcats.config.compose import compose_config, conf_dir, hydra_error
from fedcats.config.load import load
from fedcats.config.schema import HELD_OUT
from fedcats.environment import disk_error, fail, say, settle, tell
from fedcats.errors import RunError, UserError
from fedcats.experiment import baseline_process
from fedcats.text import one_line

MAX_CHECKED_JOBS = 1000
_jobs: list[int] = []  # how many the sweep of this process has

# Hydra copies all that its plugins have registered, hundreds of nodes, each time that it looks for
# a group: a hundred times for --help. It is only read.
ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def job(raw: DictConfig) -> float | None:
    """One run; returns what a Hydra sweeper may maximise, which never comes from the test images.

    Returns
    -------
    float or None
        Of the first rule's merge on the held-out training images, if there are any: its accuracy,
        less a little for its loss, so that of equal accuracies the lower loss wins.
    """
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    sweep = hydra_config.mode == RunMode.MULTIRUN
    if sweep:
        number = hydra_config.job.num
        known = _jobs and _is_basic(hydra_config.sweeper)
        of = f" ({number + 1} of {_jobs[0]})" if known else ""
        say(f"job {number}{of}: {' '.join(hydra_config.overrides.task)}", error=True)
    settle()  # in a launcher's process of its own
    # Whatever hydra.job.chdir says: relative paths mean where the command was given.
    os.chdir(hydra_config.runtime.cwd)
    try:
        config = load(raw)
        if sweep and not config.held_out and not _is_basic(hydra_config.sweeper):
            raise UserError(
                "hold_out=0: a sweeper that chooses needs held-out training images, since the "
                f"test images must have no part in it; set for example hold_out={HELD_OUT:g}"
            )
        if raw.runner.name == "flwr":
            from fedcats.federated.superlink import run_on_superlink

            results = run_on_superlink(raw, list(hydra_config.overrides.task), folder)
        else:
            if not sweep or hydra_config.job.num == 0:  # the others have made their imports
                baseline_process.start(config, folder)
            from fedcats.experiment.run import run

            given = shlex.join(["fedcats", *hydra_config.overrides.task])
            results = run(raw, folder, command=given, summary=not sweep)
            if sweep and "grid" not in results:
                from fedcats.report import verdict

                say(verdict.answer(results)[0])
    except (UserError, RunError, OSError) as caught:
        error = disk_error(caught) if isinstance(caught, OSError) else caught
        if sweep:  # the other jobs go on; Hydra raises it when they are done
            say(f"fedcats: job {hydra_config.job.num}: {one_line(error)}", error=True)
            raise error from None
        sys.exit(tell(error))  # Hydra would print more than the one line
    from fedcats.metrics.choice import as_one_number

    name = raw.strategy.rules[0] if raw.mode != "centralized" else "centralized"
    model = results["models"].get(name)
    return as_one_number(model["validation"]) if model and "validation" in model else None


def _is_basic(sweeper: DictConfig) -> bool:
    """Whether the sweeper runs every combination, and so chooses nothing."""
    return str(sweeper.get("_target_")).endswith("BasicSweeper")


def main() -> None:
    """Entry point of the console script."""
    settle()
    ending.handle_term()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, not to Hydra's printer
    try:
        sys.argv[1:] = [paths.read(argument) for argument in sys.argv[1:]]
        check(sys.argv[1:])
        try:
            job()
        except (UserError, RunError):
            report_unfinished()
            raise
        report_unfinished()
    except (UserError, RunError, OSError) as error:  # such as of Hydra's, on a full disk
        sys.exit(tell(error))
    except (HydraException, OmegaConfBaseException) as error:
        fail(hydra_error(error), UserError.exit_code)
    except KeyboardInterrupt:
        code = ending.CODE if ending.came() else 130
        fail("interrupted; finished work is kept, the same command goes on from there", code)


def check(arguments: list[str]) -> None:
    """Compose and check every job of the command line before the first one starts."""
    args = get_args_parser().parse_args(arguments)
    special = (args.help, args.hydra_help, args.cfg, args.info, args.shell_completion)
    if any(special) or "--version" in arguments:
        return
    parsed = OverridesParser.create().parse_overrides(args.overrides)
    if args.multirun:
        choices = [_choices(override) for override in parsed]
        jobs = list(itertools.islice(itertools.product(*choices), MAX_CHECKED_JOBS))
        _jobs[:] = [math.prod(map(len, choices))]
    else:
        jobs = [tuple(args.overrides)]
    for overrides in jobs:
        own = [o for o in overrides if not re.match(r"[+~]*hydra(?!\.searchpath)", o)]
        load(
            compose_config(
                own,
                config_name=args.config_name,
                config_path=args.config_path,
                config_dir=args.config_dir,
            )
        )


def _choices(override: Override) -> list[str]:
    """What an override stands for, one value each; of an interval both ends."""
    line = override.input_line or ""
    if not override.is_sweep_override():
        return [line]
    name, value = line.split("=", 1)[0], override.value()
    if isinstance(value, IntervalSweep):
        return [f"{name}={value.start}", f"{name}={value.end}"]
    return [f"{name}={v}" for v in override.sweep_string_iterator()]


if __name__ == "__main__":
    main()
