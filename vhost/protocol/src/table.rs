//! One row per message: everything that is checked before anybody looks at a payload.

use std::ops::RangeInclusive;

use crate::MAX_PAYLOAD;
use crate::payload::INFLIGHT_SHORT;

/// What the receiver sends back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing; with REPLY_ACK and the need-reply flag, a u64 that is 0 on success.
    Ack,
    /// A payload of its own, always.
    Payload,
    /// The same, with a file descriptor or without.
    PayloadAndFd,
    /// A payload of its own if LOG_SHMFD was negotiated, as [`Ack`](Self::Ack) otherwise.
    PayloadWithLogShm,
}

/// What is known of one message before its payload is read.
#[derive(Debug)]
pub struct Row {
    /// Request code.
    pub code: u32,
    /// Name in the protocol's document, without its prefix.
    pub name: &'static str,
    /// Payload bytes allowed.
    pub payload: RangeInclusive<usize>,
    /// File descriptors allowed.
    pub fds: RangeInclusive<usize>,
    /// Answer.
    pub reply: Reply,
    /// Protocol features that must have been negotiated.
    pub needs: u64,
}

macro_rules! rows {
    ($table:ident: $doc:literal, $($code:literal $name:ident $payload:expr, $fds:expr, $reply:ident, $needs:expr;)*) => {
        $(
            #[doc = concat!(stringify!($name), "; see the table.")]
            pub const $name: u32 = $code;
        )*
        #[doc = $doc]
        pub static $table: &[Row] = &[$(
            Row { code: $code, name: stringify!($name), payload: $payload, fds: $fds, reply: Reply::$reply, needs: $needs },
        )*];
    };
}

/// Requests of the front-end.
pub mod frontend {
    use super::*;
    use crate::features::*;
    use crate::{BASELINE_REGIONS, MAX_FDS};

    rows! { ROWS: "Requests of the front-end.",
        1  GET_FEATURES 0..=0, 0..=0, Payload, 0;
        2  SET_FEATURES 8..=8, 0..=0, Ack, 0;
        3  SET_OWNER 0..=0, 0..=0, Ack, 0;
        4  RESET_OWNER 0..=0, 0..=0, Ack, 0;
        5  SET_MEM_TABLE 8..=8 + 32 * BASELINE_REGIONS, 0..=MAX_FDS, Ack, 0;
        6  SET_LOG_BASE 8..=16, 0..=1, PayloadWithLogShm, 0;
        7  SET_LOG_FD 0..=8, 1..=1, Ack, 0;
        8  SET_VRING_NUM 8..=8, 0..=0, Ack, 0;
        9  SET_VRING_ADDR 40..=40, 0..=0, Ack, 0;
        10 SET_VRING_BASE 8..=8, 0..=0, Ack, 0;
        11 GET_VRING_BASE 8..=8, 0..=0, Payload, 0;
        12 SET_VRING_KICK 8..=8, 0..=1, Ack, 0;
        13 SET_VRING_CALL 8..=8, 0..=1, Ack, 0;
        14 SET_VRING_ERR 8..=8, 0..=1, Ack, 0;
        15 GET_PROTOCOL_FEATURES 0..=0, 0..=0, Payload, 0;
        16 SET_PROTOCOL_FEATURES 8..=8, 0..=0, Ack, 0;
        17 GET_QUEUE_NUM 0..=0, 0..=0, Payload, 0;
        18 SET_VRING_ENABLE 8..=8, 0..=0, Ack, 0;
        19 SEND_RARP 8..=8, 0..=0, Ack, RARP;
        20 NET_SET_MTU 8..=8, 0..=0, Ack, MTU;
        21 SET_BACKEND_REQ_FD 0..=0, 1..=1, Ack, BACKEND_REQ;
        22 IOTLB_MSG 26..=32, 0..=0, Ack, 0;
        23 SET_VRING_ENDIAN 8..=8, 0..=0, Ack, CROSS_ENDIAN;
        24 GET_CONFIG 12..=12 + 256, 0..=0, Payload, CONFIG;
        25 SET_CONFIG 12..=12 + 256, 0..=0, Ack, CONFIG;
        26 CREATE_CRYPTO_SESSION 0..=MAX_PAYLOAD, 0..=0, Payload, CRYPTO_SESSION;
        27 CLOSE_CRYPTO_SESSION 8..=8, 0..=0, Ack, CRYPTO_SESSION;
        28 POSTCOPY_ADVISE 0..=0, 0..=0, PayloadAndFd, PAGEFAULT;
        29 POSTCOPY_LISTEN 0..=0, 0..=0, Ack, PAGEFAULT;
        30 POSTCOPY_END 0..=0, 0..=0, Payload, PAGEFAULT;
        31 GET_INFLIGHT_FD INFLIGHT_SHORT..=24, 0..=0, PayloadAndFd, INFLIGHT_SHMFD;
        32 SET_INFLIGHT_FD INFLIGHT_SHORT..=24, 1..=1, Ack, INFLIGHT_SHMFD;
        33 GPU_SET_SOCKET 0..=0, 1..=1, Ack, 0;
        34 RESET_DEVICE 0..=0, 0..=0, Ack, RESET_DEVICE_FEATURE;
        35 VRING_KICK 8..=8, 0..=0, Ack, INBAND_NOTIFICATIONS;
        36 GET_MAX_MEM_SLOTS 0..=0, 0..=0, Payload, CONFIGURE_MEM_SLOTS;
        // 8 bytes and no descriptor: the end of what is added in postcopy.
        37 ADD_MEM_REG 8..=40, 0..=1, Ack, CONFIGURE_MEM_SLOTS;
        38 REM_MEM_REG 40..=40, 0..=1, Ack, CONFIGURE_MEM_SLOTS;
        39 SET_STATUS 8..=8, 0..=0, Ack, STATUS;
        40 GET_STATUS 0..=0, 0..=0, Payload, STATUS;
        41 GET_SHARED_OBJECT 16..=16, 0..=0, PayloadAndFd, SHARED_OBJECT;
        42 SET_DEVICE_STATE_FD 8..=8, 1..=1, PayloadAndFd, DEVICE_STATE;
        43 CHECK_DEVICE_STATE 0..=0, 0..=0, Payload, DEVICE_STATE;
        44 GET_SHMEM_CONFIG 0..=0, 0..=0, Payload, SHMEM_MAP;
    }

    const RESET_DEVICE_FEATURE: u64 = crate::features::RESET_DEVICE;
}

/// Requests of the back-end.
pub mod backend {
    use super::*;
    use crate::features::*;

    rows! { ROWS: "Requests of the back-end.",
        1 IOTLB_MSG 26..=32, 0..=0, Ack, 0;
        2 CONFIG_CHANGE_MSG 0..=0, 0..=0, Ack, CONFIG;
        3 VRING_HOST_NOTIFIER_MSG 24..=24, 0..=1, Ack, HOST_NOTIFIER;
        4 VRING_CALL 8..=8, 0..=0, Ack, INBAND_NOTIFICATIONS;
        5 VRING_ERR 8..=8, 0..=0, Ack, INBAND_NOTIFICATIONS;
        6 SHARED_OBJECT_ADD 16..=16, 0..=0, Ack, SHARED_OBJECT;
        7 SHARED_OBJECT_REMOVE 16..=16, 0..=0, Ack, SHARED_OBJECT;
        8 SHARED_OBJECT_LOOKUP 16..=16, 0..=0, PayloadAndFd, SHARED_OBJECT;
        9 SHMEM_MAP 40..=40, 0..=1, Ack, SHMEM_MAP_FEATURE;
        10 SHMEM_UNMAP 40..=40, 0..=0, Ack, SHMEM_MAP_FEATURE;
    }

    const SHMEM_MAP_FEATURE: u64 = crate::features::SHMEM_MAP;
}

impl Row {
    /// File descriptors that a reply to it may have.
    pub fn reply_fds(&self) -> RangeInclusive<usize> {
        match self.reply {
            Reply::PayloadAndFd => 0..=1,
            Reply::Ack | Reply::Payload | Reply::PayloadWithLogShm => 0..=0,
        }
    }
}

/// The row of a request code in one direction's table.
pub fn row(rows: &'static [Row], code: u32) -> Option<&'static Row> {
    rows.iter().find(|row| row.code == code)
}

/// A row that any reply fits: replies are matched with the request they answer, not with a table.
pub(crate) const REPLY_PAYLOAD: RangeInclusive<usize> = 0..=MAX_PAYLOAD;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_unique_and_within_the_limits() {
        for rows in [frontend::ROWS, backend::ROWS] {
            for (index, row) in rows.iter().enumerate() {
                assert!(*row.payload.end() <= MAX_PAYLOAD, "{}", row.name);
                assert!(*row.fds.end() <= crate::MAX_FDS, "{}", row.name);
                assert!(
                    rows.iter().skip(index + 1).all(|other| other.code != row.code),
                    "{}",
                    row.name
                );
            }
        }
    }
}
