"The tests run quietly, without a screen, without a network, and from the repository's root."
import os

for name, value in dict(COOPER_QUIET="1", MPLBACKEND="Agg", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1").items():
    os.environ.setdefault(name, value)

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch): monkeypatch.chdir(ROOT)
