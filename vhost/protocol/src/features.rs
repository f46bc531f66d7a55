//! Feature bits of the protocol itself.

/// Virtio feature bit that says "protocol features can be negotiated"; never shown to a driver.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Virtio feature bit that switches dirty logging on; never shown to a driver.
pub const LOG_ALL: u64 = 1 << 26;

/// GET_QUEUE_NUM.
pub const MQ: u64 = 1 << 0;
/// The dirty log is shared memory.
pub const LOG_SHMFD: u64 = 1 << 1;
/// SEND_RARP.
pub const RARP: u64 = 1 << 2;
/// Any message can ask for an answer.
pub const REPLY_ACK: u64 = 1 << 3;
/// NET_SET_MTU.
pub const MTU: u64 = 1 << 4;
/// SET_BACKEND_REQ_FD.
pub const BACKEND_REQ: u64 = 1 << 5;
/// SET_VRING_ENDIAN.
pub const CROSS_ENDIAN: u64 = 1 << 6;
/// CREATE_CRYPTO_SESSION and CLOSE_CRYPTO_SESSION.
pub const CRYPTO_SESSION: u64 = 1 << 7;
/// POSTCOPY_*.
pub const PAGEFAULT: u64 = 1 << 8;
/// GET_CONFIG and SET_CONFIG.
pub const CONFIG: u64 = 1 << 9;
/// Messages from the back-end may carry descriptors.
pub const BACKEND_SEND_FD: u64 = 1 << 10;
/// SET_VRING_KICK and the like with vring areas.
pub const HOST_NOTIFIER: u64 = 1 << 11;
/// GET_INFLIGHT_FD and SET_INFLIGHT_FD.
pub const INFLIGHT_SHMFD: u64 = 1 << 12;
/// RESET_DEVICE.
pub const RESET_DEVICE: u64 = 1 << 13;
/// Kicks and calls as messages.
pub const INBAND_NOTIFICATIONS: u64 = 1 << 14;
/// ADD_MEM_REG, REM_MEM_REG, GET_MAX_MEM_SLOTS.
pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
/// SET_STATUS and GET_STATUS.
pub const STATUS: u64 = 1 << 16;
/// GET_SHARED_OBJECT.
pub const SHARED_OBJECT: u64 = 1 << 18;
/// SET_DEVICE_STATE_FD and CHECK_DEVICE_STATE.
pub const DEVICE_STATE: u64 = 1 << 19;
/// GET_SHMEM_CONFIG, SHMEM_MAP, SHMEM_UNMAP.
pub const SHMEM_MAP: u64 = 1 << 22;
