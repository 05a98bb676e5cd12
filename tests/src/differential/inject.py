"""Sends frames by one interface and reports every frame that arrives there.

Packet sockets need an address of a kind (sockaddr_ll) and an option (PACKET_QDISC_BYPASS) that
Rust has no safe form of; Python's standard library has both.

usage: python3 inject.py INTERFACE CPU

On stdin, records: length (4 bytes, big endian) of the rest, one byte, a frame.
The byte: 0 = send by the queueing discipline, 1 = past it (PACKET_QDISC_BYPASS).
On stdout, records of the same form.
The byte: 0 = this frame arrived, 1 = a sentence: this went wrong, 2 = ready.
"""

import os
import select
import socket
import sys

# linux/if_packet.h, linux/if_ether.h, asm-generic/socket.h
SOL_PACKET = 263
PACKET_QDISC_BYPASS = 20
PACKET_IGNORE_OUTGOING = 23
ETH_P_ALL = 3
SO_RCVBUFFORCE = 33

RECEIVE_BUFFER_BYTES = 64 << 20
FRAME_BYTES_MAX = 1 << 17
READ_BYTES = 1 << 20

ARRIVED, WRONG, READY = 0, 1, 2


def packet_socket(interface, protocol):
    packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    if protocol:
        packet.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        packet.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    packet.bind((interface, protocol))
    return packet


def record(kind, body):
    return (len(body) + 1).to_bytes(4, "big") + bytes([kind]) + body


def arrivals(receiver):
    """All frames that wait, as records."""
    records = []
    while True:
        try:
            records.append(record(ARRIVED, receiver.recv(FRAME_BYTES_MAX)))
        except BlockingIOError:
            return b"".join(records)


def main():
    interface, cpu = sys.argv[1], int(sys.argv[2])
    # A veth queues on the processor of the sender: frames from two would overtake each other.
    os.sched_setaffinity(0, [cpu])
    receiver = packet_socket(interface, ETH_P_ALL)
    receiver.setblocking(False)
    senders = [packet_socket(interface, 0), packet_socket(interface, 0)]
    senders[1].setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)

    def answer(records):
        view = memoryview(records)
        while view:
            view = view[os.write(1, view) :]

    answer(record(READY, b""))
    pending = bytearray()
    waiting = select.poll()
    waiting.register(0, select.POLLIN)
    waiting.register(receiver, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in waiting.poll()}
        if receiver.fileno() in ready:
            answer(arrivals(receiver))
        if 0 not in ready:
            continue
        read = os.read(0, READ_BYTES)
        if not read:
            return
        pending += read
        at = 0
        while len(pending) >= at + 4:
            end = at + 4 + int.from_bytes(pending[at : at + 4], "big")
            if len(pending) < end:
                break
            frame = bytes(pending[at + 5 : end])
            try:
                senders[pending[at + 4]].send(frame)
            except OSError as error:
                sentence = f"send {len(frame)} bytes by {interface}: {error}"
                answer(record(WRONG, sentence.encode()))
            at = end
        del pending[:at]


main()
