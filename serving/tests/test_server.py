"""Bytes of an answer on their way out: few writes, all of the bytes, in order."""

import asyncio

import pytest

from bike_serving.server import Joined


class Transport:
    def __init__(self):
        self.sent = []
        self.closed = False

    def write(self, data):
        assert not self.closed
        self.sent.append(bytes(data))

    def writelines(self, parts):
        self.sent.append(b"".join(parts))

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed


@pytest.mark.parametrize("body", [b"body", b"b" * 100_000])
def test_head_and_body_are_one_write_and_nothing_waits_longer_than_a_turn(body):
    async def answer():
        transport = Transport()
        joined = Joined(transport, asyncio.get_running_loop())
        joined.write(b"head,")
        joined.write(body)
        assert transport.sent == [b"head," + body]
        joined.write(b"third")  # of an answer that comes in parts
        assert len(transport.sent) == 1
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert transport.sent[1:] == [b"third"]
        joined.write(b"last")
        joined.close()
        assert transport.sent[2:] == [b"last"]
        assert joined.is_closing()

    asyncio.run(answer())
