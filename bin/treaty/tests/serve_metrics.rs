//! `treaty serve --metrics`: a daemon shows its counters by HTTP.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn get(socket: &Path, path: &str) -> String {
    let started = Instant::now();
    let mut stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(60), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_daemon_shows_its_counters() {
    let place = |name| std::env::temp_dir().join(format!("treaty-{name}-{}", std::process::id()));
    let (socket, metrics) = (place("rng"), place("metrics"));
    let child = Command::new(env!("CARGO_BIN_EXE_treaty"))
        .args(["serve", "--metrics"])
        .arg(&metrics)
        .args(["rng", "--socket"])
        .arg(&socket)
        .spawn()
        .unwrap();
    let _daemon = Daemon(child);
    // The device is there a moment after the socket is.
    let started = Instant::now();
    let text = loop {
        let text = get(&metrics, "/metrics");
        if text.contains("device=\"rng\"") {
            break text;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{text}");
    };
    assert!(text.contains("application/openmetrics-text"), "{text}");
    assert!(
        text.contains("treaty_requests_completed_total{machine=\"treaty-serve-"),
        "{text}"
    );
    let counters = get(&metrics, "/api/v1/counters");
    let (_, body) = counters.split_once("\r\n\r\n").unwrap();
    let snapshot: treaty_telemetry::snapshot::Snapshot = serde_json::from_str(body).unwrap();
    let device = snapshot.device("rng").unwrap();
    assert_eq!(
        (device.transport.as_str(), device.queues.len()),
        ("vhost-user", 1)
    );
    assert!(!device.driver.bound, "nobody has used it yet");
    assert!(get(&metrics, "/elsewhere").starts_with("HTTP/1.1 404"));
    let shown = Command::new(env!("CARGO_BIN_EXE_treaty"))
        .args(["ctl", "--json", "--socket"])
        .arg(&metrics)
        .arg("counters")
        .output()
        .unwrap();
    assert!(shown.status.success(), "{shown:?}");
    assert!(String::from_utf8_lossy(&shown.stdout).contains("\"kind\":\"serve\""));
    for made in [socket, metrics] {
        let _ = std::fs::remove_file(made);
    }
}
