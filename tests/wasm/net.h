// Sockets of TCP, and of UDP to one address. Addresses are bytes in network order, four or sixteen of them.

#include <stddef.h>

// The socket of IPv6 is that of IPv4 too.
#define NET_BY_IPV6 (-2)

// A listening socket on all addresses of a family, NET_BY_IPV6, or -1 with errno.
int net_listen(int v6, int port);
int net_accept(int fd);
int net_connect(int v6, int is_udp, const unsigned char *address, int port);
int net_send(int fd, const char *bytes, size_t count);
int net_receive(int fd, char *bytes, size_t most);
// The same when poll has said that there is a datagram.
int net_answer(int fd, char *bytes, size_t most);
// Writes the addresses of a name, or why there are none, as a line.
void net_resolve(const char *name, char *text, size_t most);
