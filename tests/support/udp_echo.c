/* A UDP echo server for containers: busybox's nc speaks TCP only. Usage: udp_echo PORT */
#include <stdlib.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <arpa/inet.h>

int main(int argc, char **argv) {
    if (argc != 2)
        return 2;
    static char datagram[65536];
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))}, peer;
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    if (s < 0 || bind(s, (struct sockaddr *)&here, sizeof here))
        return 1;
    for (;;) {
        socklen_t length = sizeof peer;
        ssize_t n = recvfrom(s, datagram, sizeof datagram, 0, (struct sockaddr *)&peer, &length);
        if (n >= 0)
            sendto(s, datagram, n, 0, (struct sockaddr *)&peer, length);
    }
}
