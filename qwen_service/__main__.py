import sys

from qwen_service.cli import main

sys.exit(main())
