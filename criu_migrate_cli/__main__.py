"""python -m criu_migrate_cli"""

import sys

from .main import main

sys.exit(main())
