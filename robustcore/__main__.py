"""``python -m robustcore``."""

import sys

from robustcore.command.main import main

sys.exit(main())
