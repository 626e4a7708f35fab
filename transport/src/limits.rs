//! Limits of frames, connections and queues, all with names.

use std::time::Duration;

/// Largest protobuf header of a frame: a commit of 4096 extents or a long directory listing is some 200 KiB.
pub const HEADER_BYTES_MAX: u32 = 1 << 20;
/// Largest body of a frame: four of the largest chunks.
pub const BODY_BYTES_MAX: u32 = 16 << 20;
/// Largest protobuf header before the peers have agreed to talk.
pub(crate) const HELLO_BYTES_MAX: u32 = 4096;
/// Pieces of memory handed to the kernel in one vectored write; more do not make it cheaper.
pub(crate) const WRITE_SLICES_MAX: usize = 64;
/// Bytes that wait on one connection while one-way frames are still taken. Two of the largest frames, and a quarter of a
/// second of a 1 Gbit/s link: what waits longer was sent again by then, and a peer that does not read costs no more memory.
pub(crate) const ONE_WAY_BYTES_MAX: usize = 2 * BODY_BYTES_MAX as usize;
/// Peers that a client remembers; beyond, those without a connection are forgotten. Above any cluster we know of.
pub(crate) const PEERS_MAX: usize = 4096;
/// Longest deadline of a call; longer ones are cut to this.
pub(crate) const CALL_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);
/// Intervals of silence, pings included, after which a peer counts as dead.
pub(crate) const SILENT_INTERVALS_MAX: u32 = 3;

const _: () = assert!(BODY_BYTES_MAX >= holdfast_common::limits::CHUNK_BYTES_MAX);
const _: () = assert!(HELLO_BYTES_MAX < HEADER_BYTES_MAX);

/// Limits of a client.
#[derive(Clone, Copy, Debug)]
pub struct ClientLimits {
    /// Calls waiting for their answer on one connection; more wait for a place until their deadline.
    pub in_flight_max: usize,
    /// One-way frames waiting to be written on one connection; more are dropped.
    pub one_way_queue_max: usize,
    /// Bytes waiting to be written on one connection beyond which one-way frames are dropped; a frame that waits alone may be
    /// larger.
    pub one_way_bytes_max: usize,
    /// Connections to one peer. Calls with bulk bodies use the last one, so that small calls do not queue behind them.
    pub connections_per_peer: usize,
    /// Body length from which a call counts as bulk.
    pub bulk_bytes: usize,
    /// Longest wait for a connection and its handshake.
    pub connect_timeout: Duration,
    /// Pause after a first failed connect; doubles up to `backoff_max`. Calls in the pause fail at once.
    pub backoff_min: Duration,
    /// Longest pause between attempts to connect.
    pub backoff_max: Duration,
    /// Silence after which the peer is pinged; three times this and the connection is given up.
    pub ping_interval: Duration,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            in_flight_max: 256,
            one_way_queue_max: 4096,
            one_way_bytes_max: ONE_WAY_BYTES_MAX,
            connections_per_peer: 1,
            bulk_bytes: 64 << 10,
            connect_timeout: Duration::from_secs(2),
            backoff_min: Duration::from_millis(10),
            backoff_max: Duration::from_millis(200),
            ping_interval: Duration::from_secs(5),
        }
    }
}

/// Limits of a server.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Connections at once; more are refused in the handshake.
    pub connections_max: usize,
    /// Requests of one connection from arrival until their answer is written; more are refused as overload.
    pub in_flight_per_connection_max: usize,
    /// Requests of all connections together; more are refused as overload.
    pub in_flight_max: usize,
    /// Bytes of request bodies in memory, of all connections together; more are refused as overload.
    pub request_bytes_max: usize,
    /// Frames waiting to be written on one connection; a peer that lets more pile up is disconnected.
    pub send_queue_max: usize,
    /// Longest wait for a new connection's hello.
    pub handshake_timeout: Duration,
    /// Silence after which the peer is pinged; three times this and the connection is given up.
    pub ping_interval: Duration,
    /// Longest wait of a shutdown for running requests.
    pub drain_timeout: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            in_flight_per_connection_max: 1024,
            in_flight_max: 16 << 10,
            request_bytes_max: 1 << 30,
            send_queue_max: 4096,
            handshake_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(5),
        }
    }
}
