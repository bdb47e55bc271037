"""Tokenizers of words without meaning, of the sizes that decide the type of tokens."""

import pytest

from tests.data.test_foreign import make_tokenizer


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tokenizer(tmp_path_factory.mktemp("tokenizers") / "small", 1000))


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tokenizer(tmp_path_factory.mktemp("tokenizers") / "large", 70_000))
