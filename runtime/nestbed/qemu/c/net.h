/* Interfaces inside the guest. */
#ifndef NESTBED_NET_H
#define NESTBED_NET_H

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/if_addr.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "netlink.h"

static void bring_up_loopback(void) {
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    ioctl(fd, SIOCSIFFLAGS, &request);
    close(fd);
}

/* The index of the interface with this MAC, or 0. */
static unsigned find_nic(const char *mac) {
    DIR *directory = opendir("/sys/class/net");
    unsigned found = 0;
    for (struct dirent *entry; directory && !found && (entry = readdir(directory));) {
        char path[300], text[32] = "";
        snprintf(path, sizeof path, "/sys/class/net/%s/address", entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        if (read(fd, text, sizeof text - 1) > 0 && !strncmp(text, mac, strlen(mac)) && strlen(mac) == 17)
            found = if_nametoindex(entry->d_name);
        close(fd);
    }
    if (directory)
        closedir(directory);
    return found;
}

/* The octets of an address, and its family; `prefix` is -1 without one. */
static int parse_address(const char *text, unsigned char *octets, int *prefix) {
    char copy[64];
    snprintf(copy, sizeof copy, "%s", text);
    char *slash = strchr(copy, '/');
    if (slash)
        *slash++ = 0;
    *prefix = slash ? atoi(slash) : -1;
    int family = strchr(copy, ':') ? AF_INET6 : AF_INET;
    return inet_pton(family, copy, octets) == 1 ? family : 0;
}

static int change_link(unsigned index, const char *name, uint32_t mtu, unsigned flags) {
    struct request request;
    struct ifinfomsg body = {.ifi_index = (int)index, .ifi_flags = flags, .ifi_change = IFF_UP};
    begin(&request, RTM_NEWLINK, 0, &body, sizeof body);
    if (name)
        attribute(&request, IFLA_IFNAME, name, strlen(name) + 1);
    if (mtu)
        attribute(&request, IFLA_MTU, &mtu, sizeof mtu);
    return ask(&request);
}

/* Have the name free for the interface: one that only has it because the kernel numbers them gets another. */
static int make_way(const char *name, unsigned index) {
    unsigned other = if_nametoindex(name);
    if (!other || other == index)
        return 0;
    struct ifreq asked = {0};
    char spare[IFNAMSIZ];
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    snprintf(asked.ifr_name, sizeof asked.ifr_name, "%s", name);
    int is_in_use = ioctl(fd, SIOCGIFFLAGS, &asked) || asked.ifr_flags & IFF_UP;
    close(fd);
    if (is_in_use)
        return EEXIST;
    snprintf(spare, sizeof spare, "nic%u", other);
    return change_link(other, spare, 0, 0);
}

static int add_address(unsigned index, const char *text) {
    struct request request;
    unsigned char octets[16];
    int prefix, family = parse_address(text, octets, &prefix);
    if (!family || prefix < 0)
        return EINVAL;
    size_t size = family == AF_INET6 ? 16 : 4;
    struct ifaddrmsg body = {.ifa_family = (uint8_t)family, .ifa_prefixlen = (uint8_t)prefix, .ifa_index = index};
    uint32_t flags = IFA_F_NODAD;
    begin(&request, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &body, sizeof body);
    attribute(&request, IFA_LOCAL, octets, size);
    attribute(&request, IFA_ADDRESS, octets, size);
    if (family == AF_INET6)
        attribute(&request, IFA_FLAGS, &flags, sizeof flags);
    if (family == AF_INET && prefix < 31) {
        uint32_t broadcast;
        memcpy(&broadcast, octets, 4);
        broadcast |= htonl(0xffffffffu >> prefix);
        attribute(&request, IFA_BROADCAST, &broadcast, 4);
    }
    return ask(&request);
}

static int add_route(unsigned index, const char *destination, const char *via) {
    struct request request;
    unsigned char to[16], hop[16];
    int prefix, none, family = parse_address(via, hop, &none);
    int is_default = !strcmp(destination, "default");
    if (!family || (!is_default && parse_address(destination, to, &prefix) != family))
        return EINVAL;
    size_t size = family == AF_INET6 ? 16 : 4;
    struct rtmsg body = {.rtm_family = (uint8_t)family, .rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_BOOT, .rtm_type = RTN_UNICAST};
    if (!is_default)
        body.rtm_dst_len = (uint8_t)(prefix < 0 ? (int)size * 8 : prefix);
    begin(&request, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body, sizeof body);
    if (!is_default)
        attribute(&request, RTA_DST, to, size);
    attribute(&request, RTA_GATEWAY, hop, size);
    attribute(&request, RTA_OIF, &index, sizeof index);
    return ask(&request);
}

static const char *next_word(const char **at, const char *end) {
    const char *word = *at;
    if (word >= end)
        return NULL;
    *at = word + strlen(word) + 1;
    return word;
}

/*
 * Name the interface, set its MTU, bring it up and give it addresses and routes; `words` as frames.h has them for NIC.
 * 0, or an errno with `step` set; ENODEV: there is no interface with that MAC yet.
 */
static int set_up_nic(const char *words, uint32_t length, char *step, size_t step_size) {
    const char *at = words, *end = words + length;
    const char *mac = next_word(&at, end), *name = next_word(&at, end), *mtu = next_word(&at, end), *word, *via;
    if (!mtu)
        return EINVAL;
    unsigned index = find_nic(mac);
    if (!index)
        return ENODEV;
    int error = make_way(name, index);
    if (!error)
        error = change_link(index, name, 0, 0);
    if (!error)
        error = change_link(index, NULL, (uint32_t)atoi(mtu), IFF_UP);
    snprintf(step, step_size, "interface %s", name);
    while (!error && (word = next_word(&at, end)) && *word) {
        error = add_address(index, word);
        snprintf(step, step_size, "address %s", word);
    }
    while (!error && (word = next_word(&at, end)) && (via = next_word(&at, end))) {
        error = add_route(index, word, via);
        snprintf(step, step_size, "route to %s", word);
    }
    return error == ENODEV ? ENXIO : error;
}

#endif
