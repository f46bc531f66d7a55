//! The suite on a device made for it: tests the rigs and transports more than the device.

use treaty_testkit::{EchoSubject, conform};

#[test]
fn echo_conforms() {
    conform(&mut EchoSubject);
}
