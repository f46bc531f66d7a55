//! Offloads as feature bits. virtio 1.3 §5.1.3

use treaty_net::{Capabilities, Offloads};
use treaty_virtio_spec::Features;
use treaty_virtio_spec::net::feature as bit;

/// Feature bits that change what the driver receives; CTRL_GUEST_OFFLOADS switches them. virtio 1.3 §5.1.6.5.6.1
pub(crate) const GUEST: Features = bit::GUEST_CSUM
    .with(bit::GUEST_TSO4)
    .with(bit::GUEST_TSO6)
    .with(bit::GUEST_ECN)
    .with(bit::GUEST_UFO)
    .with(bit::GUEST_USO4)
    .with(bit::GUEST_USO6);

/// The bits on offer over a back-end.
pub(crate) fn offered(capabilities: &Capabilities) -> Features {
    let Capabilities { send, receive, .. } = *capabilities;
    let guest = Features::when(receive.csum, bit::GUEST_CSUM.with(bit::CTRL_GUEST_OFFLOADS))
        | Features::when(receive.tso4, bit::GUEST_TSO4)
        | Features::when(receive.tso6, bit::GUEST_TSO6)
        | Features::when(receive.ecn, bit::GUEST_ECN)
        | Features::when(receive.ufo, bit::GUEST_UFO)
        | Features::when(receive.uso, bit::GUEST_USO4.with(bit::GUEST_USO6));
    let host = Features::when(send.csum, bit::CSUM)
        | Features::when(send.tso4, bit::HOST_TSO4)
        | Features::when(send.tso6, bit::HOST_TSO6)
        | Features::when(send.ecn, bit::HOST_ECN)
        | Features::when(send.ufo, bit::HOST_UFO)
        | Features::when(send.uso, bit::HOST_USO);
    guest | host
}

/// What the driver takes upon itself on receive.
pub(crate) fn receive(accepted: Features) -> Offloads {
    Offloads {
        csum: accepted.has(bit::GUEST_CSUM),
        tso4: accepted.has(bit::GUEST_TSO4),
        tso6: accepted.has(bit::GUEST_TSO6),
        ecn: accepted.has(bit::GUEST_ECN),
        ufo: accepted.has(bit::GUEST_UFO),
        // The back-ends know no difference between IPv4 and IPv6 here.
        uso: accepted.has(bit::GUEST_USO4.with(bit::GUEST_USO6)),
    }
}

/// What the driver may leave to the device on transmit.
pub(crate) fn send(accepted: Features) -> Offloads {
    Offloads {
        csum: accepted.has(bit::CSUM),
        tso4: accepted.has(bit::HOST_TSO4),
        tso6: accepted.has(bit::HOST_TSO6),
        ecn: accepted.has(bit::HOST_ECN),
        ufo: accepted.has(bit::HOST_UFO),
        uso: accepted.has(bit::HOST_USO),
    }
}

/// Rows of "this bit needs one of those". virtio 1.3 §5.1.3.1
///
/// MQ is not among them: a vhost-user front-end that answers the control queue itself (QEMU does) leaves CTRL_VQ out.
const NEEDS: [(Features, &[Features]); 16] = [
    (bit::GUEST_TSO4, &[bit::GUEST_CSUM]),
    (bit::GUEST_TSO6, &[bit::GUEST_CSUM]),
    (bit::GUEST_ECN, &[bit::GUEST_TSO4, bit::GUEST_TSO6]),
    (bit::GUEST_UFO, &[bit::GUEST_CSUM]),
    (bit::GUEST_USO4, &[bit::GUEST_CSUM]),
    (bit::GUEST_USO6, &[bit::GUEST_CSUM]),
    (bit::HOST_TSO4, &[bit::CSUM]),
    (bit::HOST_TSO6, &[bit::CSUM]),
    (bit::HOST_ECN, &[bit::HOST_TSO4, bit::HOST_TSO6]),
    (bit::HOST_UFO, &[bit::CSUM]),
    (bit::HOST_USO, &[bit::CSUM]),
    (bit::CTRL_RX, &[bit::CTRL_VQ]),
    (bit::CTRL_VLAN, &[bit::CTRL_VQ]),
    (bit::CTRL_RX_EXTRA, &[bit::CTRL_VQ]),
    (bit::GUEST_ANNOUNCE, &[bit::CTRL_VQ]),
    (bit::CTRL_MAC_ADDR, &[bit::CTRL_VQ]),
];

/// True if no bit was accepted without what it needs.
pub(crate) fn consistent(accepted: Features) -> bool {
    NEEDS
        .iter()
        .all(|(bit, any)| !accepted.has(*bit) || any.iter().any(|needed| accepted.has(*needed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_offered_can_be_accepted_whole() {
        let capabilities = Capabilities {
            send: Offloads::ALL,
            receive: Offloads::ALL,
            max_pairs: 1,
            mtu: None,
        };
        let all = offered(&capabilities);
        assert!(consistent(all));
        assert_eq!((send(all), receive(all)), (Offloads::ALL, Offloads::ALL));
        assert!(!consistent(all.without(bit::CSUM)));
        assert!(!consistent(all.without(bit::GUEST_CSUM)));
        assert!(!consistent(bit::CTRL_RX));
        assert!(consistent(bit::CTRL_RX.with(bit::CTRL_VQ)));
        assert!(consistent(all.without(bit::GUEST_TSO4)), "ECN has TSO6 left");
    }
}
