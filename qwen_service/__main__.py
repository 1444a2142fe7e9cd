import sys

if sys.version_info < (3, 11):  # noqa: UP036 - started by hand, with whatever `python3` is
    sys.exit(f"qwen-service needs Python 3.11 or newer, this is {sys.version.split()[0]}. Debian 12 and 13 have it.")

from qwen_service.cli import main

sys.exit(main())
