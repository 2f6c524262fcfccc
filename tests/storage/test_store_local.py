from pathlib import Path

import pytest
from contracts.store_contract import StoreContract


class TestStoreInAFolder(StoreContract):
    @pytest.fixture
    def store_uri(self, tmp_path: Path) -> str:
        return str(tmp_path / "a folder" / "store")
