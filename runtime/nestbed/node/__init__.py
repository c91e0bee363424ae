"""Everything on this node by name: policy, records, recovery, audit, events."""
