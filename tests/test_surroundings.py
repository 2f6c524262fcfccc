"""What conftest.py promises to every test."""

from __future__ import annotations

import platform
import threading

import obstore
import pytest
import torch


def test_memory_that_nothing_wrote_is_no_answer():
    for made in (torch.empty(65), torch.empty_like(torch.ones(7)), torch.ones(3).new_empty(3)):
        assert made.isnan().all()
    assert (torch.empty(7, dtype=torch.int32) == torch.iinfo(torch.int32).max).all()


def test_the_standard_library_is_not_shadowed_by_a_folder_of_tests():
    assert platform.system()


@pytest.mark.s3
def test_of_many_that_create_one_object_one_succeeds(s3_bucket: str):
    from obstore.store import S3Store

    bucket = S3Store(s3_bucket.removeprefix("s3://"), client_options={"allow_http": True})
    winners, barrier = [], threading.Barrier(8)

    def create(number: int) -> None:
        barrier.wait()
        try:
            obstore.put(bucket, "one", str(number).encode(), mode="create")
        except obstore.exceptions.AlreadyExistsError:
            return
        winners.append(str(number))

    for _ in range(3):
        threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert winners == [obstore.get(bucket, "one").bytes().to_bytes().decode()]
        winners.clear()
        obstore.delete(bucket, "one")
