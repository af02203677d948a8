//! The leases on disk: which NIC went where, for whom, and what it was before.
