/* An IP-in-IP tunnel that the kernel makes, also one without the ipip device: what is routed to the
 * overlay gets an outer header on its way out, and is then cut by the kernel's own segmentation for
 * IP in IP; on its way in it loses that header.
 *
 * OUTER is the IP version of the underlay, OWN and PEER are the bytes of its addresses. The overlay
 * is 198.51.100.0/24 and 2001:db8:1::/64.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>

#define SECTION(name) __attribute__((section(name), used))
#define HELPER(number) __attribute__((kernel_helper(number)))

/* Since 6.3, and so not in every linux/bpf.h. */
#define DECAP_L3_IPV4 (1ULL << 7)
#define DECAP_L3_IPV6 (1ULL << 8)

int store_bytes(void *skb, int offset, const void *from, int len, __u64 flags) HELPER(9);
int load_bytes(const void *skb, int offset, void *to, int len) HELPER(26);
int adjust_room(void *skb, int by, int mode, __u64 flags) HELPER(50);

#if OUTER == 4
#define HEADER 20
#define ENCAP BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
#define ETHERTYPE ETH_P_IP
#else
#define HEADER 40
#define ENCAP BPF_F_ADJ_ROOM_ENCAP_L3_IPV6
#define ETHERTYPE ETH_P_IPV6
#endif

static inline __attribute__((always_inline)) int set_ethertype(void *skb, int type)
{
	unsigned char bytes[2] = { type >> 8, type & 0xff };

	return store_bytes(skb, 12, bytes, 2, 0);
}

SECTION("tc/out") int encapsulate(struct __sk_buff *skb)
{
	unsigned char inner[40], outer[HEADER] = {};
	const unsigned char addresses[2][HEADER == 20 ? 4 : 16] = { { OWN }, { PEER } };
	int i, len, protocol, at;

	if (skb->protocol == __builtin_bswap16(ETH_P_IP)) {
		if (load_bytes(skb, ETH_HLEN, inner, 20))
			return TC_ACT_OK;
		if (inner[16] != 198 || inner[17] != 51 || inner[18] != 100)
			return TC_ACT_OK;
		protocol = IPPROTO_IPIP;
	} else if (skb->protocol == __builtin_bswap16(ETH_P_IPV6)) {
		if (load_bytes(skb, ETH_HLEN, inner, 40))
			return TC_ACT_OK;
		if (inner[24] != 0x20 || inner[25] != 0x01 || inner[26] != 0x0d ||
		    inner[27] != 0xb8 || inner[28] != 0 || inner[29] != 1)
			return TC_ACT_OK;
		protocol = IPPROTO_IPV6;
	} else {
		return TC_ACT_OK;
	}
	len = skb->len - ETH_HLEN;
#if OUTER == 4
	len += HEADER;
	outer[0] = 0x45;
	outer[2] = len >> 8;
	outer[3] = len & 0xff;
	outer[6] = 0x40; /* DF */
	outer[8] = 64;
	outer[9] = protocol;
	at = 12;
#else
	outer[0] = 0x60;
	outer[4] = len >> 8;
	outer[5] = len & 0xff;
	outer[6] = protocol;
	outer[7] = 64;
	at = 8;
#endif
	for (i = 0; i < (int)sizeof(addresses[0]); i++) {
		outer[at + i] = addresses[0][i];
		outer[at + sizeof(addresses[0]) + i] = addresses[1][i];
	}
#if OUTER == 4
	{
		unsigned int sum = 0;

		for (i = 0; i < HEADER; i += 2)
			sum += outer[i] << 8 | outer[i + 1];
		sum = (sum & 0xffff) + (sum >> 16);
		sum = ~((sum & 0xffff) + (sum >> 16));
		outer[10] = (sum >> 8) & 0xff;
		outer[11] = sum & 0xff;
	}
#endif
	if (adjust_room(skb, HEADER, BPF_ADJ_ROOM_MAC, ENCAP) ||
	    store_bytes(skb, ETH_HLEN, outer, HEADER, 0) || set_ethertype(skb, ETHERTYPE))
		return TC_ACT_SHOT;
	return TC_ACT_OK;
}

SECTION("tc/in") int decapsulate(struct __sk_buff *skb)
{
	unsigned char protocol;

	if (skb->protocol != __builtin_bswap16(ETHERTYPE) ||
	    load_bytes(skb, ETH_HLEN + (OUTER == 4 ? 9 : 6), &protocol, 1))
		return TC_ACT_OK;
	if (protocol == IPPROTO_IPIP) {
		if (adjust_room(skb, -HEADER, BPF_ADJ_ROOM_MAC, DECAP_L3_IPV4) ||
		    set_ethertype(skb, ETH_P_IP))
			return TC_ACT_SHOT;
	} else if (protocol == IPPROTO_IPV6) {
		if (adjust_room(skb, -HEADER, BPF_ADJ_ROOM_MAC, DECAP_L3_IPV6) ||
		    set_ethertype(skb, ETH_P_IPV6))
			return TC_ACT_SHOT;
	}
	return TC_ACT_OK;
}

char terms[] SECTION("license") = "Dual MIT/GPL";
