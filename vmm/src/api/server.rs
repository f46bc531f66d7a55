use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tiny_http::{Header, Method, Request, Response, Server};
use treaty_listen::{ListenError, Listener};

use super::{Control, ControlError, OPENAPI};

/// The thread that answers API requests. Dropping it closes the socket and removes it.
pub struct ApiServer {
    server: Arc<Server>,
    thread: Option<JoinHandle<()>>,
    _listener: Listener,
}

/// The API could not start.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The socket.
    #[error("API {0}")]
    Listen(#[from] ListenError),
    /// The system refused.
    #[error("API: cannot {action}: {source}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

impl ApiServer {
    /// Listens on `path` and answers for `machine` until dropped.
    pub fn start(path: &Path, machine: Arc<dyn Control>) -> Result<Self, ApiError> {
        let host = |action| move |source| ApiError::Host { action, source };
        let listener = Listener::bind(path)?;
        let socket = listener.socket().try_clone().map_err(host("share the socket"))?;
        let server = Server::from_listener(socket, None)
            .map_err(|error| host("start the HTTP server")(io::Error::other(error)))?;
        let server = Arc::new(server);
        let thread = std::thread::Builder::new()
            .name("api".into())
            .spawn({
                let server = server.clone();
                move || answer_all(&server, &*machine)
            })
            .map_err(host("start a thread"))?;
        Ok(Self {
            server,
            thread: Some(thread),
            _listener: listener,
        })
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.server.unblock();
        if let Some(thread) = self.thread.take() {
            // The thread answers one request at most before it ends; its panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

fn answer_all(server: &Server, machine: &dyn Control) {
    for mut request in server.incoming_requests() {
        let (kind, (code, body)) = match (request.method(), path_of(&request)) {
            (Method::Get, METRICS) => {
                let text = treaty_metrics::openmetrics(&machine.counters());
                (treaty_metrics::CONTENT_TYPE, (200, text))
            }
            (_, METRICS) => ("application/json", error(405, "use GET")),
            _ => ("application/json", answer(&mut request, machine)),
        };
        let kind = Header {
            field: field("Content-Type"),
            value: value(kind),
        };
        let response = Response::from_string(body)
            .with_status_code(code)
            .with_header(kind);
        // The client may have gone away; that is its affair.
        let _ = request.respond(response);
    }
}

fn field(name: &'static str) -> tiny_http::HeaderField {
    name.parse()
        .unwrap_or_else(|()| unreachable!("a constant header name is ASCII"))
}

fn value<T: std::str::FromStr>(text: &'static str) -> T {
    text.parse()
        .unwrap_or_else(|_| unreachable!("a constant header value is ASCII"))
}

/// Status code and JSON body.
type Answer = (u16, String);

/// For Prometheus, beside the API.
const METRICS: &str = "/metrics";
const READ: &[&str] = &["status", "devices", "counters", "openapi.json"];
const WRITE: &[&str] = &["pause", "resume", "power-button", "quit", "snapshot"];
/// The longest body of a request, in bytes.
const MAX_BODY: u64 = 64 << 10;

fn path_of(request: &Request) -> &str {
    request.url().split('?').next().unwrap_or_default()
}

fn answer(request: &mut Request, machine: &dyn Control) -> Answer {
    let path = path_of(request).to_owned();
    let Some(what) = path.strip_prefix("/api/v1/") else {
        return error(404, "paths begin with /api/v1/; see /api/v1/openapi.json");
    };
    match (request.method(), what) {
        (Method::Get, "status") => json(&machine.status()),
        (Method::Get, "devices") => json(&machine.devices()),
        (Method::Get, "counters") => json(&machine.counters()),
        (Method::Get, "openapi.json") => (200, OPENAPI.into()),
        (Method::Put, "pause") => command(machine.pause(), machine),
        (Method::Put, "resume") => command(machine.resume(), machine),
        (Method::Put, "power-button") => command(machine.power_button(), machine),
        (Method::Put, "quit") => command(machine.quit(), machine),
        (Method::Put, "snapshot") => match body(request) {
            Ok(what) => command(machine.snapshot(&what), machine),
            Err(reason) => error(400, &reason),
        },
        (_, what) if READ.contains(&what) => error(405, "use GET"),
        (_, what) if WRITE.contains(&what) => error(405, "use PUT"),
        _ => error(404, "no such thing; see /api/v1/openapi.json"),
    }
}

/// A request's body, which is JSON.
fn body<T: DeserializeOwned>(request: &mut Request) -> Result<T, String> {
    let mut text = String::new();
    let mut bytes = request.as_reader().take(MAX_BODY);
    let read = bytes.read_to_string(&mut text);
    read.map_err(|reason| format!("the body cannot be read: {reason}"))?;
    serde_json::from_str(&text)
        .map_err(|reason| format!("the body is not what /api/v1/openapi.json says: {reason}"))
}

/// A command answers with the state that it led to.
fn command(result: Result<(), ControlError>, machine: &dyn Control) -> Answer {
    match result {
        Ok(()) => json(&machine.status()),
        Err(refused @ ControlError::State(_)) => error(409, &refused.to_string()),
        Err(refused @ ControlError::Refused(_)) => error(400, &refused.to_string()),
        Err(failed) => error(500, &failed.to_string()),
    }
}

fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_string(value) {
        Ok(text) => (200, text),
        Err(reason) => error(500, &reason.to_string()),
    }
}

fn error(code: u16, text: &str) -> Answer {
    (code, serde_json::json!({ "error": text }).to_string())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
