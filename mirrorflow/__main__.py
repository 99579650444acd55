"""``python -m mirrorflow`` is the command ``mirrorflow``."""

from mirrorflow.cli import main

main()
