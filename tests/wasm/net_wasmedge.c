// WasmEdge's sockets, which extend wasi_snapshot_preview1.

#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "net.h"

#define FROM_WASMEDGE(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(name)))

enum { FAMILY_ANY = 0, FAMILY_4 = 1, FAMILY_6 = 2, DATAGRAM = 1, STREAM = 2, FOUND = 8 };

struct address { const uint8_t *bytes; uint32_t size; };
struct part { uint8_t *bytes; uint32_t size; };
struct sockaddr_of { uint8_t family; uint32_t size; uint8_t *bytes; };
struct info {
    uint16_t flags;
    uint8_t family, type;
    uint32_t protocol, size;
    struct sockaddr_of *address;
    char *canonical;
    uint32_t canonical_size;
    struct info *next;
};

FROM_WASMEDGE("sock_open") int32_t sock_open(uint8_t family, uint8_t type, uint32_t *fd);
FROM_WASMEDGE("sock_bind") int32_t sock_bind(uint32_t fd, struct address *own, uint32_t port);
FROM_WASMEDGE("sock_listen") int32_t sock_listen(uint32_t fd, uint32_t backlog);
FROM_WASMEDGE("sock_accept") int32_t sock_accept(uint32_t fd, uint32_t *accepted);
FROM_WASMEDGE("sock_connect") int32_t sock_connect(uint32_t fd, struct address *to, uint32_t port);
FROM_WASMEDGE("sock_send")
int32_t sock_send(uint32_t fd, struct part *parts, uint32_t count, uint16_t flags, uint32_t *sent);
FROM_WASMEDGE("sock_recv")
int32_t sock_recv(uint32_t fd, struct part *parts, uint32_t count, uint16_t flags, uint32_t *got, uint16_t *what);
FROM_WASMEDGE("sock_getaddrinfo")
int32_t sock_getaddrinfo(const char *name, uint32_t name_size, const char *service, uint32_t service_size,
                         struct info *hints, struct info **found, uint32_t most, uint32_t *count);

static int done(int32_t failed, int value) {
    if (!failed) return value;
    errno = failed;
    return -1;
}

static int opened(int v6, int is_udp) {
    uint32_t fd = 0;
    return done(sock_open(v6 ? FAMILY_6 : FAMILY_4, is_udp ? DATAGRAM : STREAM, &fd), fd);
}

int net_listen(int v6, int port) {
    static const uint8_t any[16];
    struct address own = {any, sizeof any};
    // A socket of IPv6 takes connections of IPv4 here, and there is no option that would change that.
    if (!v6) return NET_BY_IPV6;
    int fd = opened(v6, 0);
    if (fd < 0) return -1;
    int32_t failed = sock_bind(fd, &own, port);
    if (!failed) failed = sock_listen(fd, 16);
    return done(failed, fd);
}

int net_accept(int fd) {
    uint32_t accepted = 0;
    return done(sock_accept(fd, &accepted), accepted);
}

int net_connect(int v6, int is_udp, const unsigned char *address, int port) {
    struct address to = {address, v6 ? 16 : 4};
    int fd = opened(v6, is_udp);
    if (fd < 0) return -1;
    return done(sock_connect(fd, &to, port), fd);
}

int net_send(int fd, const char *bytes, size_t count) {
    struct part part = {(uint8_t *)bytes, count};
    uint32_t sent = 0;
    return done(sock_send(fd, &part, 1, 0, &sent), sent);
}

int net_answer(int fd, char *bytes, size_t most) {
    return net_receive(fd, bytes, most);
}

int net_receive(int fd, char *bytes, size_t most) {
    struct part part = {(uint8_t *)bytes, most};
    uint32_t got = 0;
    uint16_t what = 0;
    return done(sock_recv(fd, &part, 1, 0, &got, &what), got);
}

void net_resolve(const char *name, char *text, size_t most) {
    static uint8_t bytes[FOUND][64];
    static char names[FOUND][64];
    static struct sockaddr_of addresses[FOUND];
    static struct info all[FOUND];
    struct info hints = {.family = FAMILY_ANY, .type = STREAM}, *found = all;
    uint32_t count = 0;
    for (int i = 0; i < FOUND; i++) {
        addresses[i] = (struct sockaddr_of){.size = sizeof bytes[i], .bytes = bytes[i]};
        all[i] = (struct info){.address = &addresses[i], .canonical = names[i], .canonical_size = sizeof names[i],
                               .next = i + 1 < FOUND ? &all[i + 1] : NULL};
    }
    int32_t failed = sock_getaddrinfo(name, strlen(name), "", 0, &hints, &found, FOUND, &count);
    if (failed || !count) {
        snprintf(text, most, "not resolved: error %d\n", (int)failed);
        return;
    }
    size_t end = snprintf(text, most, "addresses:");
    for (uint32_t i = 0; i < count && i < FOUND && end < most - 64; i++) {
        int v6 = all[i].family == FAMILY_6;
        char address[INET6_ADDRSTRLEN];
        // Behind the port, and in IPv6 behind the flow label.
        inet_ntop(v6 ? AF_INET6 : AF_INET, bytes[i] + (v6 ? 6 : 2), address, sizeof address);
        end += snprintf(text + end, most - end, " %s", address);
    }
    snprintf(text + end, most - end, "\n");
}
