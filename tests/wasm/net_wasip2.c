// wasi:sockets 0.2, by the calls of wasi-libc.

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net.h"

static socklen_t at(int v6, const unsigned char *address, int port, struct sockaddr_storage *to) {
    memset(to, 0, sizeof *to);
    if (v6) {
        struct sockaddr_in6 *six = (void *)to;
        six->sin6_family = AF_INET6;
        six->sin6_port = htons(port);
        if (address) memcpy(&six->sin6_addr, address, 16);
        return sizeof *six;
    }
    struct sockaddr_in *four = (void *)to;
    four->sin_family = AF_INET;
    four->sin_port = htons(port);
    if (address) memcpy(&four->sin_addr, address, 4);
    return sizeof *four;
}

static int made(int fd, int failed) {
    if (failed) {
        int why = errno;
        close(fd);
        errno = why;
        return -1;
    }
    return fd;
}

int net_listen(int v6, int port) {
    struct sockaddr_storage own;
    socklen_t size = at(v6, NULL, port, &own);
    int fd = socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
    if (fd < 0) return -1;
    return made(fd, bind(fd, (void *)&own, size) || listen(fd, 16));
}

int net_accept(int fd) {
    return accept(fd, NULL, NULL);
}

int net_connect(int v6, int is_udp, const unsigned char *address, int port) {
    struct sockaddr_storage to;
    socklen_t size = at(v6, address, port, &to);
    int fd = socket(v6 ? AF_INET6 : AF_INET, is_udp ? SOCK_DGRAM : SOCK_STREAM, 0);
    if (fd < 0) return -1;
    return made(fd, connect(fd, (void *)&to, size));
}

int net_send(int fd, const char *bytes, size_t count) {
    return send(fd, bytes, count, 0);
}

int net_answer(int fd, char *bytes, size_t most) {
    // poll also says that there is something when a datagram was refused, and a call that waits would wait for ever then.
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return net_receive(fd, bytes, most);
}

int net_receive(int fd, char *bytes, size_t most) {
    return recv(fd, bytes, most, 0);
}

void net_resolve(const char *name, char *text, size_t most) {
    struct addrinfo *found = NULL, hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    int failed = getaddrinfo(name, NULL, &hints, &found);
    if (failed) {
        snprintf(text, most, "not resolved: %s\n", gai_strerror(failed));
        return;
    }
    size_t end = snprintf(text, most, "addresses:");
    for (struct addrinfo *one = found; one && end < most - 64; one = one->ai_next) {
        int v6 = one->ai_family == AF_INET6;
        const void *bytes = v6 ? (void *)&((struct sockaddr_in6 *)one->ai_addr)->sin6_addr
                               : (void *)&((struct sockaddr_in *)one->ai_addr)->sin_addr;
        char address[INET6_ADDRSTRLEN];
        inet_ntop(v6 ? AF_INET6 : AF_INET, bytes, address, sizeof address);
        end += snprintf(text + end, most - end, " %s", address);
    }
    snprintf(text + end, most - end, "\n");
    freeaddrinfo(found);
}
