"""``blocks: auto``: what is placed is stored with the run, and replayed whatever the code says later."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fake_searches import settings as fake_settings  # noqa: F401
