/* Just enough of rtnetlink(7): one request, one acknowledgement. */
#ifndef NESTBED_NETLINK_H
#define NESTBED_NETLINK_H

#include <errno.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct request {
    struct nlmsghdr header;
    unsigned char body[1024];
};

static inline void *begin(struct request *request, uint16_t type, uint16_t flags, const void *body, size_t size) {
    memset(request, 0, sizeof *request);
    request->header.nlmsg_type = type;
    request->header.nlmsg_flags = (uint16_t)(NLM_F_REQUEST | NLM_F_ACK | flags);
    request->header.nlmsg_len = (uint32_t)NLMSG_LENGTH(size);
    memcpy(NLMSG_DATA(&request->header), body, size);
    return NLMSG_DATA(&request->header);
}

static inline struct rtattr *attribute(struct request *request, uint16_t type, const void *value, size_t size) {
    struct rtattr *attribute = (struct rtattr *)((char *)request + NLMSG_ALIGN(request->header.nlmsg_len));
    attribute->rta_type = type;
    attribute->rta_len = (uint16_t)RTA_LENGTH(size);
    if (size)
        memcpy(RTA_DATA(attribute), value, size);
    request->header.nlmsg_len = NLMSG_ALIGN(request->header.nlmsg_len) + (uint32_t)RTA_ALIGN(attribute->rta_len);
    return attribute;
}

/* What follows, until `end_nest`, is inside. */
static inline struct rtattr *begin_nest(struct request *request, uint16_t type) { return attribute(request, type, NULL, 0); }

static inline void end_nest(struct request *request, struct rtattr *nest) {
    nest->rta_len = (uint16_t)((char *)request + request->header.nlmsg_len - (char *)nest);
}

/* 0, or the errno of the kernel's answer. */
static inline int ask(struct request *request) {
    struct {
        struct nlmsghdr header;
        struct nlmsgerr error;
        unsigned char rest[1024];
    } reply;
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE), error = 0;
    if (fd < 0)
        return errno;
    if (send(fd, request, request->header.nlmsg_len, 0) < 0 || recv(fd, &reply, sizeof reply, 0) < (ssize_t)sizeof reply.header)
        error = errno;
    else if (reply.header.nlmsg_type == NLMSG_ERROR)
        error = -reply.error.error;
    close(fd);
    return error;
}

#endif
