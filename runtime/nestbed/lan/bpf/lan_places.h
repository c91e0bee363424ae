/* Where each station is heard, and what tells that frames go round in a loop. */
#ifndef NESTBED_LAN_PLACES_H
#define NESTBED_LAN_PLACES_H

#include "lan_maps.h"

#define MOVES_MAX 5
#define SECOND_NS 1000000000ULL
#define AT_ONCE_NS (50 * 1000000ULL)
#define PIN_NS (5 * SECOND_NS)

static __always_inline void note_refusal(const struct station *station, __be32 kept, __be32 refused, __u64 now)
{
	struct refusal first = { .frames = 1, .last_ns = now, .kept = kept, .refused = refused };
	struct refusal *found = bpf_map_lookup_elem(&refusals, station);

	if (!found) {
		bpf_map_update_elem(&refusals, station, &first, BPF_ANY);
		return;
	}
	found->frames++;
	found->last_ns = now;
	found->kept = kept;
	found->refused = refused;
}

/* A station was seen at an origin: 1 if it may be there, 0 if not. It may move; but what is in two places at once comes round in a loop,
 * and of it only what came first is taken. So is what moves too often: it is pinned, as long as both are heard. */
static __always_inline int note_place(struct place *place, const struct station *station, __be32 origin)
{
	__u64 now = bpf_ktime_get_coarse_ns();

	if (place->origin == origin) {
		place->heard_ns = now;
		return 1;
	}
	if (now - place->window_ns > SECOND_NS) {
		place->window_ns = now;
		place->moves = 0;
	}
	if (now >= place->pinned_ns && ++place->moves > MOVES_MAX)
		place->pinned_ns = now + PIN_NS;
	if (now < place->pinned_ns && now - place->heard_ns < PIN_NS)
		place->moves = 0;
	else if (now - place->heard_ns >= AT_ONCE_NS) {
		place->pinned_ns = 0;
		place->origin = origin;
		place->heard_ns = now;
		place->supers = 0;
		return 1;
	}
	note_refusal(station, place->origin, origin, now);
	return 0;
}

/* The place of a station that was seen at an origin; NULL only if there is no memory. is_allowed as note_place says. */
static __always_inline struct place *see(const struct station *station, __be32 origin, int *is_allowed)
{
	struct place *place = bpf_map_lookup_elem(&places, station);

	*is_allowed = 1;
	if (place) {
		*is_allowed = note_place(place, station, origin);
	} else {
		struct place first = { .origin = origin, .heard_ns = bpf_ktime_get_coarse_ns() };

		bpf_map_update_elem(&places, station, &first, BPF_ANY);
		place = bpf_map_lookup_elem(&places, station);
	}
	return place;
}

/* Whether a station can have this address: neither a group's nor zero. */
static __always_inline int is_station(const __u8 *mac)
{
	return !(mac[0] & 1) && (mac[0] | mac[1] | mac[2] | mac[3] | mac[4] | mac[5]);
}

#endif
