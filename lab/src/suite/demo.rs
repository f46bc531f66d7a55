//! The guest of `cargo xtask demo`: no test of one thing, but all that a guest needs at once.

use crate::batch::Batch;
use crate::guest::{Expect, Guest, GuestTest, Kernel};

pub fn batch() -> Batch {
    let guest = Guest {
        cpus: 2,
        memory_mib: 512,
        devices: vec![
            "--disk path=$W/disk,format=raw,queues=2,ring=packed".into(),
            "--net tap=tt0".into(),
            "--rng".into(),
        ],
        script: include_str!("scripts/demo.sh").into(),
        ..Guest::new(Kernel::K6_12)
    };
    let test = GuestTest {
        before: "truncate -s 64M disk\nmkdir www\necho 'hello, guest' >www/hello\n".into(),
        beside: include_str!("scripts/demo-host.sh").into(),
        expect: vec![Expect::Console("demo done".into())],
        ..GuestTest::new("demo", guest)
    };
    Batch {
        name: "demo".into(),
        tests: vec![test],
    }
}
