"""The report in a real browser: it asks for nothing, it fits, its sliders choose as `choose` does, and it can be used
without a mouse."""

from __future__ import annotations

import importlib.util
import json
import random
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
from conftest_browser import Look, Sight

from evaluators.contract import Metric
from search.choice import Wish, choose
from search.errors import NothingFeasible
from search.report.html import write_report
from search.results import Results

pytestmark = pytest.mark.slow
