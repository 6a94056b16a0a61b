"""``python -m fedcats.cli`` is ``fedcats``."""

from fedcats.cli.run import main

main()
