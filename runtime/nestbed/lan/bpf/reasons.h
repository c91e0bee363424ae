/* Why a frame was dropped: nestbed/lan/reasons.py in C, where each is explained. A test compares the two. */
#ifndef NESTBED_REASONS_H
#define NESTBED_REASONS_H

enum reason {
	REASON_OWN = 1,
	REASON_LOOP = 2,
	REASON_RUNT = 3,
	REASON_GIANT = 4,
	REASON_MALFORMED = 5,
	REASON_NO_LAN = 6,
	REASON_OVERSIZE = 8,
	REASON_NO_MEMORY = 9,
	REASON_UNDERLAY_DOWN = 10,
	REASON_STRANGER = 11,
	REASON_LOSS = 12,
	REASON_QUEUE = 13,
	REASON_FOREIGN = 14,
	REASON_UNASKED = 15,
};

#define REASONS_MAX 32

#endif
