"""Warnings of a thread are collected whatever other threads do meanwhile."""

import logging
import threading

from fedistill.warned import collected


def test_threads_that_come_and_go_leave_each_other_their_warnings():
    logger = logging.getLogger("fedistill")
    before = list(logger.handlers)
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))
    found: dict[str, list[str]] = {}

    def first() -> None:
        with collected() as warnings:
            first_is_in.set()
            assert second_is_in.wait(60)
            logger.warning("of the first")
        found["first"] = warnings
        first_is_out.set()

    def second() -> None:
        assert first_is_in.wait(60)
        with collected() as warnings:
            second_is_in.set()
            assert first_is_out.wait(60)
            logger.warning("of the second")
        found["second"] = warnings

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"first": ["of the first"], "second": ["of the second"]}
    assert logger.handlers == before
