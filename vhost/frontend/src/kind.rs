use treaty_virtio_device::{DeviceId, Features};
use treaty_virtio_spec::{blk, console, fs, net};
use zerocopy::IntoBytes;

/// What vhost-user does not tell of a device.
#[derive(Clone, Debug)]
pub struct Kind {
    /// Device type.
    pub id: DeviceId,
    /// The most queues to offer.
    pub queues: u16,
    /// Queues of a back-end that does not say how many it has.
    pub unsaid_queues: u16,
    /// Largest queue size to offer.
    pub queue_size: u16,
    /// Device-type features to keep from the back-end's offer.
    pub features: Features,
    /// Device-type features that this side has, whatever the back-end offers: it is not told of them.
    pub own_features: Features,
    /// Where the configuration comes from.
    pub config: ConfigSource,
}

/// Who keeps a device's configuration.
#[derive(Clone, Debug)]
pub enum ConfigSource {
    /// The back-end. Some back-ends refuse to be asked for more than the device type's fields.
    Backend {
        /// Bytes to ask for.
        len: u32,
        /// Where a 16-bit count of queues stands, which must not be more than are offered.
        queues_at: Option<usize>,
    },
    /// This side.
    Own(Vec<u8>),
}

/// Largest queue size on offer.
const QUEUE_SIZE: u16 = 256;

/// A network card's features that are between the driver and whoever handles the packets.
const PACKET_FEATURES: Features = net::feature::CSUM
    .with(net::feature::GUEST_CSUM)
    .with(net::feature::GUEST_TSO4)
    .with(net::feature::GUEST_TSO6)
    .with(net::feature::GUEST_ECN)
    .with(net::feature::GUEST_UFO)
    .with(net::feature::HOST_TSO4)
    .with(net::feature::HOST_TSO6)
    .with(net::feature::HOST_ECN)
    .with(net::feature::HOST_UFO)
    .with(net::feature::MRG_RXBUF)
    .with(net::feature::GUEST_USO4)
    .with(net::feature::GUEST_USO6)
    .with(net::feature::HOST_USO);

impl Kind {
    /// A disk with at most `queues` queues. CONFIG_WCE is left out, so that drivers flush: qemu-storage-daemon says by it that it
    /// writes through, and does not unless it is told to.
    pub fn blk(queues: u16) -> Self {
        Self {
            id: DeviceId::BLK,
            queues,
            unsaid_queues: 1,
            queue_size: QUEUE_SIZE,
            features: blk::feature::SIZE_MAX
                .with(blk::feature::SEG_MAX)
                .with(blk::feature::GEOMETRY)
                .with(blk::feature::RO)
                .with(blk::feature::BLK_SIZE)
                .with(blk::feature::FLUSH)
                .with(blk::feature::TOPOLOGY)
                .with(blk::feature::MQ)
                .with(blk::feature::DISCARD)
                .with(blk::feature::WRITE_ZEROES),
            own_features: Features::NONE,
            config: ConfigSource::Backend {
                len: blk::CONFIG_SIZE,
                queues_at: Some(blk::CONFIG_NUM_QUEUES_OFFSET),
            },
        }
    }

    /// A network card with one pair of queues.
    pub fn net(mac: [u8; 6], mtu: Option<u16>) -> Self {
        let config = net::Config {
            mac,
            status: net::STATUS_LINK_UP.into(),
            max_virtqueue_pairs: 1.into(),
            mtu: mtu.unwrap_or(0).into(),
            speed: net::SPEED_UNKNOWN.into(),
            duplex: net::DUPLEX_UNKNOWN,
        };
        Self {
            id: DeviceId::NET,
            queues: 2,
            unsaid_queues: 2,
            queue_size: QUEUE_SIZE,
            features: PACKET_FEATURES,
            own_features: net::feature::MAC
                .with(net::feature::STATUS)
                .with(Features::when(mtu.is_some(), net::feature::MTU)),
            config: ConfigSource::Own(config.as_bytes().to_vec()),
        }
    }

    /// An entropy source.
    pub fn rng() -> Self {
        Self {
            id: DeviceId::RNG,
            queues: 1,
            unsaid_queues: 1,
            queue_size: QUEUE_SIZE,
            features: Features::NONE,
            own_features: Features::NONE,
            config: ConfigSource::Own(Vec::new()),
        }
    }

    /// A console, with as many ports as the back-end has.
    pub fn console() -> Self {
        Self {
            id: DeviceId::CONSOLE,
            queues: 64,
            unsaid_queues: 2,
            queue_size: QUEUE_SIZE,
            features: console::feature::SIZE.with(console::feature::MULTIPORT),
            own_features: Features::NONE,
            config: ConfigSource::Backend {
                len: console::CONFIG_SIZE as u32,
                queues_at: None,
            },
        }
    }

    /// A shared folder that the guest mounts by `tag`, with `queues` request queues.
    pub fn fs(tag: &str, queues: u16) -> Self {
        let mut config = fs::Config {
            tag: [0; fs::TAG_SIZE],
            num_request_queues: u32::from(queues).into(),
        };
        for (to, from) in config.tag.iter_mut().zip(tag.bytes()) {
            *to = from;
        }
        Self {
            id: DeviceId::FS,
            queues: fs::FIRST_REQUEST_QUEUE + queues,
            unsaid_queues: fs::FIRST_REQUEST_QUEUE + queues,
            queue_size: QUEUE_SIZE,
            features: Features::NONE,
            own_features: Features::NONE,
            config: ConfigSource::Own(config.as_bytes().to_vec()),
        }
    }

    /// How many queues to offer over a back-end that says it has `said`. Of a network card it counts pairs.
    pub(crate) fn queues_of(&self, said: Option<u64>) -> u16 {
        let Some(said) = said else {
            return self.queues.min(self.unsaid_queues);
        };
        let rings = match self.id {
            DeviceId::NET => said.saturating_mul(2).saturating_add(1),
            _ => said,
        };
        self.queues.min(u16::try_from(rings).unwrap_or(u16::MAX))
    }

    /// Corrects what the back-end says of itself to what is offered.
    pub(crate) fn correct(&self, config: &mut [u8], queues: u16) {
        let ConfigSource::Backend {
            queues_at: Some(at), ..
        } = self.config
        else {
            return;
        };
        if let Some(field) = config.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<2>()) {
            *field = u16::from_le_bytes(*field).min(queues).to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_the_fewer_of_what_is_wanted_and_what_is_there() {
        assert_eq!(Kind::blk(4).queues_of(Some(2)), 2);
        assert_eq!(Kind::blk(4).queues_of(Some(u64::MAX)), 4);
        assert_eq!(Kind::blk(4).queues_of(None), 1);
        assert_eq!(
            Kind::net([2; 6], None).queues_of(Some(1)),
            2,
            "a pair is two queues"
        );
        assert_eq!(Kind::fs("x", 3).queues_of(Some(4)), 4);
        let mut config = vec![0xff; 60];
        Kind::blk(4).correct(&mut config, 2);
        assert_eq!(config[33..37], [0xff, 2, 0, 0xff]);
        Kind::blk(4).correct(&mut config[..35], 1);
    }

    #[test]
    fn a_folder_has_its_tag() {
        let ConfigSource::Own(config) = Kind::fs("share", 2).config else {
            panic!("it is ours");
        };
        assert_eq!((config.len(), &config[..6], config[36]), (40, &b"share\0"[..], 2));
    }
}
