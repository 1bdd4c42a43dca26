"""The readers of the documentation lie beside its tests: importlib mode adds no folder."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
