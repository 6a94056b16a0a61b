"""The command ``fedcats``: Hydra's command line with errors in one line and exit codes.

Heavy imports wait until a job starts, so that ``--help`` is quick.
"""

import itertools
import os
import sys
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fedcats.config import compose_config, conf_dir, hydra_error, load
from fedcats.core.errors import RunError, UserError

MAX_CHECKED_JOBS = 1000


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def job(raw: DictConfig) -> float:
    """One run; returns the accuracy that a Hydra sweeper may maximise."""
    job_info = HydraConfig.get()
    folder = Path(job_info.runtime.output_dir)
    try:
        if raw.runner.name == "flwr":
            from fedcats.federated.flower import run_on_superlink

            results = run_on_superlink(raw, list(job_info.overrides.task), folder)
        else:
            from fedcats.experiment import run

            results = run(raw, folder)
    except (UserError, RunError) as error:  # Hydra would print more than the one line
        _exit(str(error), error.exit_code)
    name = raw.strategy.rules[0] if raw.mode != "centralized" else "centralized"
    return float(results["models"][name]["accuracy"])


def main() -> None:
    """Entry point of the console script."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, not to Hydra's printer
    try:
        check(sys.argv[1:])
        job()
    except (UserError, RunError) as error:
        _exit(str(error), error.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        _exit(hydra_error(error), UserError.exit_code)
    except KeyboardInterrupt:
        _exit("interrupted; finished work is kept, the same command goes on from there", 130)


def _exit(message: str, code: int) -> NoReturn:
    print(f"fedcats: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def check(arguments: list[str]) -> None:
    """Compose and check every job of the command line before the first one starts."""
    args = get_args_parser().parse_args(arguments)
    special = (args.help, args.hydra_help, args.cfg, args.info, args.shell_completion)
    if any(special) or "--version" in arguments:
        return
    parsed = OverridesParser.create().parse_overrides(args.overrides)
    if args.multirun:
        choices = [
            [f"{(o.input_line or '').split('=', 1)[0]}={v}" for v in o.sweep_string_iterator()]
            if o.is_sweep_override()
            else [o.input_line or ""]
            for o in parsed
        ]
        jobs = list(itertools.islice(itertools.product(*choices), MAX_CHECKED_JOBS))
    else:
        jobs = [tuple(args.overrides)]
    for overrides in jobs:
        own = [o for o in overrides if not o.lstrip("+~").startswith("hydra")]
        load(compose_config(own))


if __name__ == "__main__":
    main()
