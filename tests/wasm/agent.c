// A program for WebAssembly runtimes that does with sockets what it is asked for. It listens on the ports that are its
// arguments, over both families, and answers one line on each connection:
//
//   GET ...             a page
//   ask ADDRESS PORT    what the one at that address answers to GET, or why there is no answer
//   send ADDRESS PORT   the datagram that answers one to there, or why there is none
//   resolve NAME        addresses
//   listen PORT         listens on one more port
//   env NAME            a variable of its environment
//
// net.h has the calls that differ: those of wasi:sockets 0.2, and those of WasmEdge.

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "net.h"

#define MOST 32

static struct pollfd listening[MOST];
static int count;

// Returns why it could not listen, or NULL.
static const char *listen_on(int port) {
    for (int v6 = 0; v6 < 2; v6++) {
        if (count == MOST) return "too many ports";
        int fd = net_listen(v6, port);
        if (fd == NET_BY_IPV6) continue;
        if (fd < 0) return strerror(errno);
        listening[count++] = (struct pollfd){.fd = fd, .events = POLLIN};
    }
    return NULL;
}

// Returns a socket that is connected, or -1 with the reason in `answer`.
static int connected(int is_udp, char *address, int port, char *answer, size_t most) {
    unsigned char bytes[16];
    int v6 = strchr(address, ':') != NULL;
    if (inet_pton(v6 ? AF_INET6 : AF_INET, address, bytes) != 1) {
        snprintf(answer, most, "no address: %s\n", address);
        return -1;
    }
    int fd = net_connect(v6, is_udp, bytes, port);
    if (fd < 0) snprintf(answer, most, "not connected: %s\n", strerror(errno));
    return fd;
}

static void send_datagram(char *address, int port, char *answer, size_t most) {
    int fd = connected(1, address, port, answer, most);
    if (fd < 0) return;
    struct pollfd waits = {.fd = fd, .events = POLLIN};
    int got = -1;
    size_t at = snprintf(answer, most, "answer: ");
    if (net_send(fd, "hello", 5) < 0) {
        snprintf(answer, most, "not sent: %s\n", strerror(errno));
    } else if (poll(&waits, 1, 1000) < 1 || (got = net_answer(fd, answer + at, most - 1 - at)) < 0) {
        snprintf(answer, most, "no answer\n");
    } else {
        answer[at + got] = 0;
    }
    close(fd);
}

static void ask(char *address, int port, char *answer, size_t most) {
    int fd = connected(0, address, port, answer, most);
    if (fd < 0) return;
    const char *request = "GET / HTTP/1.0\r\n\r\n";
    size_t at = snprintf(answer, most, "answer: ");
    if (net_send(fd, request, strlen(request)) < 0) {
        snprintf(answer, most, "not sent: %s\n", strerror(errno));
    } else {
        for (int n; at < most - 1 && (n = net_receive(fd, answer + at, most - 1 - at)) > 0; at += n) {}
        answer[at] = 0;
    }
    close(fd);
}

static void answer(char *line, char *text, size_t most) {
    char *word = strtok(line, " \r\n"), *first = strtok(NULL, " \r\n"), *second = strtok(NULL, " \r\n");
    const char *why;
    if (word && !strcmp(word, "GET")) {
        snprintf(text, most, "HTTP/1.0 200 OK\r\n\r\nthe page\n");
    } else if (word && first && second && !strcmp(word, "ask")) {
        ask(first, atoi(second), text, most);
    } else if (word && first && second && !strcmp(word, "send")) {
        send_datagram(first, atoi(second), text, most);
    } else if (word && first && !strcmp(word, "resolve")) {
        net_resolve(first, text, most);
    } else if (word && first && !strcmp(word, "listen")) {
        why = listen_on(atoi(first));
        snprintf(text, most, "%s\n", why ? why : "listening");
    } else if (word && first && !strcmp(word, "env")) {
        const char *value = getenv(first);
        snprintf(text, most, "%s\n", value ? value : "not set");
    } else {
        snprintf(text, most, "not understood\n");
    }
}

static void serve(int fd) {
    static char line[512], text[4096];
    size_t at = 0;
    // A line may come in parts.
    while (at < sizeof line - 1 && !memchr(line, '\n', at)) {
        int n = net_receive(fd, line + at, sizeof line - 1 - at);
        if (n <= 0) break;
        at += n;
    }
    line[at] = 0;
    answer(line, text, sizeof text);
    net_send(fd, text, strlen(text));
    close(fd);
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        const char *why = listen_on(atoi(argv[i]));
        if (why) {
            fprintf(stderr, "agent: port %s: %s\n", argv[i], why);
            return 1;
        }
    }
    fprintf(stderr, "agent: ready\n");
    for (;;) {
        if (poll(listening, count, -1) < 0) {
            fprintf(stderr, "agent: poll: %s\n", strerror(errno));
            return 1;
        }
        for (int i = 0, all = count; i < all; i++) {
            if (!listening[i].revents) continue;
            int fd = net_accept(listening[i].fd);
            if (fd >= 0) serve(fd);
        }
    }
}
