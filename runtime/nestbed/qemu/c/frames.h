/*
 * What the agent inside a virtual machine and the host say to each other, over virtio-serial ports.
 *
 * A frame is a header of 12 octets and a payload of at most FRAME_BYTES_MAX: type (1 octet, never 0), 3 octets of 0, channel and
 * length (32 bits each, little-endian). An octet of 0 where a type is expected is skipped, so a host that does not know where an
 * earlier one stopped sends as many zeros as the longest frame takes, and then HELLO. A host that has just connected throws
 * away whatever comes before the answer to its HELLO. nestbed/qemu/frames.py is the same for Python.
 */
#ifndef NESTBED_FRAMES_H
#define NESTBED_FRAMES_H

#include <stdint.h>
#include <string.h>

enum { HEADER_BYTES = 12, FRAME_BYTES_MAX = 16384, CREDIT_BYTES = 65536, NONCE_BYTES = 16 };

enum frame_type {
    /* from the host */
    HELLO = 1,    /* a nonce: forget everything of this port, kill its programs, and send it back */
    ARGUMENT = 2, /* a piece of the next argument; END_OF_WORD ends it */
    VARIABLE = 3, /* a piece of the next NAME=VALUE */
    END_OF_WORD = 4,
    DIRECTORY = 5,
    USER = 6,
    STREAMS = 7, /* flags (STREAM_TTY, STREAM_STDIN), rows, columns: 16 bits each */
    RUN = 8,     /* start what was collected; the answer is STARTED or FAILED */
    INPUT = 9,
    END_OF_INPUT = 10,
    SIGNAL = 11,   /* 32 bits */
    RESIZE = 12,   /* rows, columns */
    CREDIT = 13,   /* 32 bits: so many more octets of output (from the host), of input (from the guest) are welcome */
    CLOSE = 14,    /* kill the program and forget it */
    WRITE = 15,    /* mode (32 bits), path, 0, content: replaces the file's content; the answer is DONE or FAILED */
    HOSTNAME = 16, /* DONE or FAILED */
    NIC = 17,      /* words ended by 0: MAC, name, MTU, addresses, "", then destination and next hop of routes; DONE or FAILED */
    POWER_OFF = 18,
    MOUNT = 19, /* tag of a virtiofs, 0, "ro" or "rw", 0, path, 0: mounts it there; DONE or FAILED */
    KEEP = 20,  /* start what was collected, and start it again whenever it ends; what it says goes to the console; DONE or FAILED */
    GROUP = 24,   /* words ended by 0: name, number, members with commas between; DONE or FAILED */
    ACCOUNT = 25, /* words ended by 0: name, uid, gid, who it is, home, shell, "sudo" or "", lines of authorized_keys; DONE or FAILED */
    /* from the guest */
    READY = 65,   /* the first port only: the agent is there */
    STARTED = 66, /* 32 bits: the process */
    FAILED = 67,  /* errno (32 bits), the step that failed */
    OUTPUT = 68,
    ERRORS = 69,
    ENDED = 70, /* 0 or the signal (32 bits), exit code (32 bits); after all output */
    DONE = 71, /* not on channel 0 */
};

enum { STREAM_TTY = 1, STREAM_STDIN = 2 };

struct frame {
    uint8_t type;
    uint32_t channel;
    uint32_t length;
    const unsigned char *payload;
};

static inline uint32_t get32(const unsigned char *at) {
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static inline uint16_t get16(const unsigned char *at) { return (uint16_t)(at[0] | at[1] << 8); }

static inline void put32(unsigned char *at, uint32_t value) {
    at[0] = (unsigned char)value;
    at[1] = (unsigned char)(value >> 8);
    at[2] = (unsigned char)(value >> 16);
    at[3] = (unsigned char)(value >> 24);
}

static inline void put_header(unsigned char *at, uint8_t type, uint32_t channel, uint32_t length) {
    memset(at, 0, HEADER_BYTES);
    at[0] = type;
    put32(at + 4, channel);
    put32(at + 8, length);
}

/*
 * The first whole frame of `size` octets at `data`: gives how many octets it took (0: more are needed), and `type` 0 if those are none.
 * A length that no frame has is no frame either: its first octet is skipped.
 */
static inline size_t next_frame(const unsigned char *data, size_t size, struct frame *frame) {
    size_t skipped = 0;
    frame->type = 0;
    while (skipped < size && data[skipped] == 0)
        skipped++;
    if (skipped)
        return skipped;
    if (size < HEADER_BYTES)
        return 0;
    frame->channel = get32(data + 4);
    frame->length = get32(data + 8);
    if (frame->length > FRAME_BYTES_MAX)
        return 1;
    if (size < HEADER_BYTES + frame->length)
        return 0;
    frame->type = data[0];
    frame->payload = data + HEADER_BYTES;
    return HEADER_BYTES + frame->length;
}

#endif
