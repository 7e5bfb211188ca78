//! All machines of a cluster on one seeded event heap.
