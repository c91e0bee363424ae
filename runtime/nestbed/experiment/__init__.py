"""Experiments: a virtual topology (vtopo), the machines that hold it (ptopo), and the placement that joins them."""
