use treaty_virtio_spec::DeviceId;

/// What queue `index` of `count` of a device is for: the specification's name, numbered where there are several.
pub fn queue_name(device: DeviceId, index: u16, count: u16) -> String {
    match device {
        DeviceId::NET if count % 2 == 1 && index + 1 == count => "control".into(),
        DeviceId::NET => direction(index, index / 2),
        // virtio 1.3 §5.3.2: port 0, control, then the other ports.
        DeviceId::CONSOLE => match index {
            0 | 1 => direction(index, 0),
            2 => "control-receive".into(),
            3 => "control-transmit".into(),
            _ => direction(index, index / 2 - 1),
        },
        DeviceId::BLK if count > 1 => format!("request{index}"),
        _ if count == 1 || device == DeviceId::BLK => "request".into(),
        _ => format!("queue{index}"),
    }
}

fn direction(index: u16, number: u16) -> String {
    match index % 2 {
        0 => format!("receive{number}"),
        _ => format!("transmit{number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_have_the_names_of_the_specification() {
        let names = |device, count| (0..count).map(move |index| queue_name(device, index, count));
        let net: Vec<_> = names(DeviceId::NET, 5).collect();
        assert_eq!(net, ["receive0", "transmit0", "receive1", "transmit1", "control"]);
        let console: Vec<_> = names(DeviceId::CONSOLE, 6).collect();
        assert_eq!(
            console[2..],
            ["control-receive", "control-transmit", "receive1", "transmit1"]
        );
        assert_eq!(queue_name(DeviceId::BLK, 0, 1), "request");
        assert_eq!(queue_name(DeviceId::BLK, 1, 2), "request1");
        assert_eq!(queue_name(DeviceId::RNG, 0, 1), "request");
    }
}
