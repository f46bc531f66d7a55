use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::thread::JoinHandle;

use tiny_http::{Header, Method, Request, Response};
use treaty_listen::{ListenError, Listener};
use treaty_telemetry::snapshot::Snapshot;

use crate::openmetrics;

/// What `GET /metrics` answers with.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where a [`Server`] listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP. Anybody who reaches it may read.
    Tcp(SocketAddr),
    /// A Unix socket of this user.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    /// `127.0.0.1:9100` or `[::1]:9100`; anything with a slash is a path.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            return Ok(Self::Unix(text.into()));
        }
        let address = text.parse();
        address.map(Self::Tcp).map_err(|_| {
            format!("{text:?} is neither an address such as 127.0.0.1:9100 nor the path of a socket such as ./metrics.sock")
        })
    }
}

/// The server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The socket.
    #[error("metrics: {0}")]
    Listen(#[from] ListenError),
    /// The system refused.
    #[error("metrics: cannot {action}: {source}")]
    Host {
        /// What was tried.
        action: String,
        /// The system's reason.
        source: io::Error,
    },
}

/// A thread that answers `GET /metrics` and `GET /api/v1/counters`, and nothing else. Dropping it ends it.
pub struct Server {
    server: Arc<tiny_http::Server>,
    thread: Option<JoinHandle<()>>,
    _listener: Option<Listener>,
}

impl Server {
    /// Listens; `snapshot` is called on the server's thread for each request.
    pub fn start(
        address: &Address,
        snapshot: impl Fn() -> Snapshot + Send + 'static,
    ) -> Result<Self, ServerError> {
        let host = |action: String| move |source| ServerError::Host { action, source };
        let (socket, listener) = match address {
            Address::Tcp(address) => {
                let socket = TcpListener::bind(address).map_err(host(format!("listen on {address}")))?;
                (tiny_http::Listener::from(socket), None)
            }
            Address::Unix(path) => {
                let listener = Listener::bind(path)?;
                let socket = listener.socket().try_clone();
                let socket = socket.map_err(host("share the socket".into()))?;
                (tiny_http::Listener::from(socket), Some(listener))
            }
        };
        let server = tiny_http::Server::from_listener(socket, None)
            .map_err(|error| host("start the HTTP server".into())(io::Error::other(error)))?;
        let server = Arc::new(server);
        let thread = std::thread::Builder::new().name("metrics".into()).spawn({
            let server = server.clone();
            move || {
                for request in server.incoming_requests() {
                    answer(request, &snapshot);
                }
            }
        });
        Ok(Self {
            server,
            thread: Some(thread.map_err(host("start a thread".into()))?),
            _listener: listener,
        })
    }

    /// Where it listens, if that is TCP: the port that the system chose for port 0.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.server.server_addr().to_ip()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.server.unblock();
        if let Some(thread) = self.thread.take() {
            // It answers one request at most before it ends; its panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

fn answer(request: Request, snapshot: &impl Fn() -> Snapshot) {
    let path = request.url().split('?').next().unwrap_or_default();
    let known = ["/metrics", "/api/v1/counters"].contains(&path);
    let (code, kind, body) = match (request.method(), path) {
        (Method::Get, "/metrics") => (200, CONTENT_TYPE, openmetrics(&snapshot())),
        (Method::Get, "/api/v1/counters") => match serde_json::to_string(&snapshot()) {
            Ok(text) => (200, "application/json", text),
            Err(reason) => (500, "text/plain", reason.to_string()),
        },
        _ if known => (405, "text/plain", "use GET\n".into()),
        _ => (
            404,
            "text/plain",
            "there are /metrics and /api/v1/counters\n".into(),
        ),
    };
    let mut response = Response::from_string(body).with_status_code(code);
    if let Ok(header) = Header::from_bytes("Content-Type", kind) {
        response = response.with_header(header);
    }
    // The client may have gone away; that is its affair.
    let _ = request.respond(response);
}
