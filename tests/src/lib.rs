//! Whole clusters on real sockets.
