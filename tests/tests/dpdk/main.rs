//! DPDK's testpmd as a peer: its `net_virtio_user` in front of our network card, and its `net_vhost` behind our front-end. Every
//! frame that goes round is compared byte by byte.

mod client;
mod frames;
mod server;
mod testpmd;
