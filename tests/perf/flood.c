/* flood INTERFACE[,INTERFACE...] DESTINATION_MAC[,MAC...] SECONDS: 64-byte frames, as fast as the kernel takes them, in turn on each
 * interface. Prints a line when it begins. A ring in shared memory (packet_mmap), past the queueing discipline: one system call a batch. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FRAMES 64
#define SLOT 2048
#define LINKS_MAX 64

struct link {
	int fd;
	char *ring;
};

static void check(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

static void open_link(struct link *link, const char *name, const char *mac_text)
{
	struct tpacket_req request = { .tp_block_size = FRAMES * SLOT, .tp_block_nr = 1, .tp_frame_size = SLOT, .tp_frame_nr = FRAMES };
	struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(name) };
	int version = TPACKET_V2, one = 1;
	unsigned char own[6] = { 2, 0xF1, 0, 0, 0, address.sll_ifindex }, mac[6];

	if (sscanf(mac_text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5]) != 6)
		check(-1, mac_text);
	check(link->fd = socket(AF_PACKET, SOCK_RAW, 0), "socket");
	check(setsockopt(link->fd, SOL_PACKET, PACKET_VERSION, &version, sizeof(version)), "PACKET_VERSION");
	check(setsockopt(link->fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one)), "PACKET_QDISC_BYPASS");
	check(setsockopt(link->fd, SOL_PACKET, PACKET_TX_RING, &request, sizeof(request)), "PACKET_TX_RING");
	check(bind(link->fd, (struct sockaddr *)&address, sizeof(address)), "bind");
	link->ring = mmap(NULL, FRAMES * SLOT, PROT_READ | PROT_WRITE, MAP_SHARED, link->fd, 0);
	if (link->ring == MAP_FAILED)
		check(-1, "mmap");
	for (int i = 0; i < FRAMES; i++) {
		/* IPv4 and UDP to an address that nobody has: the receiver looks at it and lets it go. 60 bytes and the check sequence. */
		unsigned char *frame = (unsigned char *)link->ring + i * SLOT + TPACKET2_HDRLEN - sizeof(struct sockaddr_ll);
		static const unsigned char ip[] = { 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0xF6, 0xBB, 192, 0, 2, 1, 192, 0, 2, 2, 0x30, 0, 0x30, 0, 0, 26 };

		memcpy(frame, mac, 6);
		memcpy(frame + 6, own, 6);
		frame[12] = 8;
		memcpy(frame + 14, ip, sizeof(ip));
	}
}

static void send_batch(struct link *link)
{
	for (int i = 0; i < FRAMES; i++) {
		struct tpacket2_hdr *header = (struct tpacket2_hdr *)(link->ring + i * SLOT);

		header->tp_len = 60;
		header->tp_status = TP_STATUS_SEND_REQUEST;
	}
	check(send(link->fd, NULL, 0, 0) < 0 && errno != ENOBUFS ? -1 : 0, "send");
}

int main(int count, char **words)
{
	struct link links[LINKS_MAX];
	struct timespec now, end;
	int number = 0;

	if (count != 4)
		return 2;
	for (char *rest_names = words[1], *rest_macs = words[2], *name; (name = strsep(&rest_names, ",")) && number < LINKS_MAX; number++)
		open_link(&links[number], name, strsep(&rest_macs, ","));
	puts("sending");
	fflush(stdout);
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += atoi(words[3]);
	do {
		for (int i = 0; i < number; i++)
			send_batch(&links[i]);
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec < end.tv_sec || (now.tv_sec == end.tv_sec && now.tv_nsec < end.tv_nsec));
	return 0;
}
