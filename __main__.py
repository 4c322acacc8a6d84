"""``python -m collectionlora`` is the command ``collectionlora``."""

from .cli import main

raise SystemExit(main())
