import pytest
from contracts.store_contract import StoreContract


@pytest.mark.s3
class TestStoreOnS3(StoreContract):
    num_flips = 1  # each costs some forty requests

    @pytest.fixture
    def store_uri(self, s3_bucket: str) -> str:
        return f"{s3_bucket}/cohort/store"
