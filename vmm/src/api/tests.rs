use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Mutex;

use treaty_telemetry::snapshot::Snapshot;

use super::super::{DeviceInfo, MachineState, MachineStatus, SnapshotRequest};
use super::*;

/// A machine with nothing in it but its state: the API's own behaviour is what these tests look at.
struct Switch(Mutex<MachineState>);

impl Switch {
    fn go(&self, to: MachineState) -> Result<(), ControlError> {
        let mut state = self.0.lock().unwrap();
        if *state == MachineState::Stopped {
            return Err(ControlError::State(*state));
        }
        *state = to;
        Ok(())
    }
}

impl Control for Switch {
    fn status(&self) -> MachineStatus {
        let state = *self.0.lock().unwrap();
        MachineStatus {
            state,
            pid: 1,
            cpus: 1,
            memory_bytes: 1 << 20,
            uptime_seconds: 0.5,
            reboots: 0,
            degraded: Vec::new(),
            exits: Default::default(),
        }
    }
    fn pause(&self) -> Result<(), ControlError> {
        self.go(MachineState::Paused)
    }
    fn resume(&self) -> Result<(), ControlError> {
        self.go(MachineState::Running)
    }
    fn power_button(&self) -> Result<(), ControlError> {
        self.go(MachineState::Running)
    }
    fn quit(&self) -> Result<(), ControlError> {
        self.go(MachineState::Stopped)
    }
    fn snapshot(&self, what: &SnapshotRequest) -> Result<(), ControlError> {
        match what.disk.as_str() {
            "disk0" => self.go(MachineState::Running),
            other => Err(ControlError::Refused(format!("no {other} here"))),
        }
    }
    fn devices(&self) -> Vec<DeviceInfo> {
        Vec::new()
    }
    fn counters(&self) -> Snapshot {
        let status = serde_json::json!({
            "version": 1, "taken_ns": 5, "devices": [],
            "machine": {
                "kind": "monitor", "name": "m", "pid": 1, "state": "running", "cpus": 1, "memory_bytes": 1,
                "uptime_seconds": 0.5, "reboots": 0, "telemetry": true, "other_exits": exits(),
            },
        });
        serde_json::from_value(status).unwrap()
    }
}

fn exits() -> serde_json::Value {
    serde_json::to_value(treaty_telemetry::snapshot::Exits::default()).unwrap()
}

fn ask(path: &Path, line: &str) -> (u16, serde_json::Value) {
    let (code, body) = ask_text(path, line);
    (code, serde_json::from_str(&body).unwrap())
}

fn ask_text(path: &Path, line: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(path).unwrap();
    write!(
        stream,
        "{line} HTTP/1.1\r\nHost: treaty\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, body.to_owned())
}

fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("treaty-api-{name}-{}", std::process::id()))
}

#[test]
fn commands_change_the_state_and_wrong_ones_say_why() {
    let path = socket("commands");
    let api = ApiServer::start(&path, Arc::new(Switch(Mutex::new(MachineState::Running)))).unwrap();
    assert_eq!(ask(&path, "GET /api/v1/status").1["state"], "running");
    assert_eq!(ask(&path, "PUT /api/v1/pause").1["state"], "paused");
    assert_eq!(ask(&path, "GET /api/v1/pause").0, 405);
    assert_eq!(ask(&path, "GET /api/v1/nothing").0, 404);
    assert_eq!(ask(&path, "GET /").0, 404);
    assert_eq!(ask(&path, "PUT /api/v1/quit").1["state"], "stopped");
    let (code, body) = ask(&path, "PUT /api/v1/resume");
    assert_eq!(
        (code, body["error"].as_str().unwrap().contains("Stopped")),
        (409, true)
    );
    drop(api);
    assert!(!path.exists());
}

#[test]
fn a_snapshot_says_what_is_wrong_with_it() {
    let path = socket("snapshot");
    let _api = ApiServer::start(&path, Arc::new(Switch(Mutex::new(MachineState::Running)))).unwrap();
    let put = |body: &str| {
        let mut stream = UnixStream::connect(&path).unwrap();
        write!(
            stream,
            "PUT /api/v1/snapshot HTTP/1.1\r\nHost: treaty\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    assert!(put(r#"{"disk":"disk0","path":"/new"}"#).contains("200 OK"));
    for (body, reason) in [
        (r#"{"disk":"disk7","path":"/new"}"#, "no disk7 here"),
        (r#"{"disk":"disk0"}"#, "missing field `path`"),
        (
            r#"{"disk":"disk0","path":"/new","format":"raw"}"#,
            "unknown variant `raw`",
        ),
        ("", "the body is not"),
    ] {
        let answer = put(body);
        assert!(answer.contains(" 400 ") && answer.contains(reason), "{answer}");
    }
}

#[test]
fn counters_come_as_json_and_as_openmetrics() {
    let path = socket("counters");
    let _api = ApiServer::start(&path, Arc::new(Switch(Mutex::new(MachineState::Running)))).unwrap();
    let counters = ask(&path, "GET /api/v1/counters").1;
    assert_eq!(
        (&counters["version"], &counters["machine"]["name"]),
        (&1.into(), &"m".into())
    );
    let (code, text) = ask_text(&path, "GET /metrics");
    assert_eq!(code, 200);
    assert!(
        text.contains("treaty_uptime_seconds{machine=\"m\"} 0.5"),
        "{text}"
    );
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert_eq!(ask(&path, "PUT /metrics").0, 405);
    assert_eq!(ask(&path, "PUT /api/v1/counters").0, 405);
}

#[test]
fn the_description_names_every_path() {
    let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
    let mut described: Vec<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
    let mut served: Vec<_> = READ
        .iter()
        .chain(WRITE)
        .map(|what| format!("/api/v1/{what}"))
        .chain([METRICS.to_owned()])
        .collect();
    described.sort();
    served.sort();
    assert_eq!(described, served);
}
