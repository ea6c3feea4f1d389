"""Fake judges and encoder, see tests/fakes.py."""

import pytest
from fakes import FakeEncoder, FakeJudges


@pytest.fixture
def judges() -> FakeJudges:
    return FakeJudges()


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder()
