//! The entropy device.

use super::{CORNERS, kernel_for};
use crate::batch::Batch;
use crate::guest::{Guest, GuestTest};

pub fn batch() -> Batch {
    Batch {
        name: "rng".into(),
        tests: (0..CORNERS.len()).map(entropy).collect(),
    }
}

fn entropy(corner: usize) -> GuestTest {
    let (kernel, (transport, ring)) = (kernel_for(corner), CORNERS[corner]);
    let guest = Guest {
        devices: vec![format!("--rng=transport={transport},ring={ring}")],
        script: include_str!("scripts/rng.sh").into(),
        ..Guest::new(kernel)
    };
    GuestTest::new(format!("rng-{transport}-{ring}-{}", kernel.series()), guest)
}
