//! How often a guest leaves for the monitor for each operation of an emulated device, counted.

use crate::batch::Batch;
use crate::guest::{Expect, Guest, GuestTest, Kernel};

pub fn batch() -> Batch {
    let guest = Guest {
        devices: vec![
            "--disk path=$W/disk,format=raw,if=ide".into(),
            "--net tap=tt0,model=e1000".into(),
        ],
        script: include_str!("scripts/exits.sh").into(),
        ..Guest::new(Kernel::K6_12)
    };
    Batch {
        name: "exits".into(),
        tests: vec![GuestTest {
            before: "head -c 8m /dev/urandom >disk".into(),
            beside: include_str!("scripts/exits-host.sh").into(),
            expect: vec![Expect::Console("exits done".into())],
            ..GuestTest::new("exits-emulated", guest)
        }],
    }
}
