"""``python -m fmdist``: the command line where its script is not installed, as in a job's folder."""

import sys

from fmdist.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
