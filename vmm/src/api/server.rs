use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use serde::Serialize;
use tiny_http::{Header, Method, Request, Response, Server};

use super::{Control, ControlError, OPENAPI};

/// The thread that answers API requests. Dropping it closes the socket and removes it.
pub struct ApiServer {
    server: Arc<Server>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

/// The API could not start.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Another program listens there.
    #[error("API socket {0}: another program listens on it; choose another path")]
    InUse(PathBuf),
    /// There is something at that path that is not a socket.
    #[error("API socket {0}: the file exists and is not a socket; choose another path")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("API socket {path}: {source}")]
    Host {
        /// The socket's path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl ApiServer {
    /// Listens on `path` and answers for `machine` until dropped.
    pub fn start(path: &Path, machine: Arc<dyn Control>) -> Result<Self, ApiError> {
        let host = |source| ApiError::Host {
            path: path.into(),
            source,
        };
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(host)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(host)?;
        let server = Server::from_listener(listener, None).map_err(|error| host(io::Error::other(error)))?;
        let server = Arc::new(server);
        let thread = std::thread::Builder::new()
            .name("api".into())
            .spawn({
                let server = server.clone();
                move || answer_all(&server, &*machine)
            })
            .map_err(host)?;
        Ok(Self {
            server,
            thread: Some(thread),
            path: path.into(),
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
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes a socket that nobody listens on any more; refuses anything else.
fn remove_stale(path: &Path) -> Result<(), ApiError> {
    use std::os::unix::fs::FileTypeExt;
    match fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(found) if !found.file_type().is_socket() => Err(ApiError::NotASocket(path.into())),
        Ok(_) if UnixStream::connect(path).is_ok() => Err(ApiError::InUse(path.into())),
        Ok(_) => fs::remove_file(path).map_err(|source| ApiError::Host {
            path: path.into(),
            source,
        }),
    }
}

fn answer_all(server: &Server, machine: &dyn Control) {
    for request in server.incoming_requests() {
        let (code, body) = answer(&request, machine);
        let json = Header {
            field: field("Content-Type"),
            value: value("application/json"),
        };
        let response = Response::from_string(body)
            .with_status_code(code)
            .with_header(json);
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

const READ: &[&str] = &["status", "devices", "openapi.json"];
const WRITE: &[&str] = &["pause", "resume", "power-button", "quit"];

fn answer(request: &Request, machine: &dyn Control) -> Answer {
    let path = request.url().split('?').next().unwrap_or_default();
    let Some(what) = path.strip_prefix("/api/v1/") else {
        return error(404, "paths begin with /api/v1/; see /api/v1/openapi.json");
    };
    match (request.method(), what) {
        (Method::Get, "status") => json(&machine.status()),
        (Method::Get, "devices") => json(&machine.devices()),
        (Method::Get, "openapi.json") => (200, OPENAPI.into()),
        (Method::Put, "pause") => command(machine.pause(), machine),
        (Method::Put, "resume") => command(machine.resume(), machine),
        (Method::Put, "power-button") => command(machine.power_button(), machine),
        (Method::Put, "quit") => command(machine.quit(), machine),
        (_, what) if READ.contains(&what) => error(405, "use GET"),
        (_, what) if WRITE.contains(&what) => error(405, "use PUT"),
        _ => error(404, "no such thing; see /api/v1/openapi.json"),
    }
}

/// A command answers with the state that it led to.
fn command(result: Result<(), ControlError>, machine: &dyn Control) -> Answer {
    match result {
        Ok(()) => json(&machine.status()),
        Err(refused @ ControlError::State(_)) => error(409, &refused.to_string()),
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
