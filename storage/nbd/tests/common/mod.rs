//! What the tests of this crate share: a server in a temporary folder, and a task that carries out requests.
#![allow(dead_code)]

#[path = "../../../tests/common/mod.rs"]
mod storage;

use std::path::PathBuf;
use std::sync::Arc;

use treaty_listen::Listener;
use treaty_nbd::{Endpoint, Export, NbdImage, Server, ServerOptions};
use treaty_storage::BlockImage;

pub use storage::{Disk, Folder, SOON, workers};

/// A server on a Unix socket.
pub struct Served {
    pub server: Server,
    pub socket: PathBuf,
}

impl Served {
    /// The URI of one of its exports.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    /// Its nameless export.
    pub fn open(&self, read_only: bool) -> NbdImage {
        NbdImage::open(&self.uri("").parse().unwrap(), "server", read_only).unwrap()
    }
}

/// Serves one image without a name.
pub fn serve(folder: &Folder, image: Arc<dyn BlockImage>) -> Served {
    let export = Export {
        name: String::new(),
        image,
        read_only: false,
        writes_through: false,
    };
    serve_with(
        folder,
        ServerOptions {
            exports: vec![export],
            tls: None,
            max_connections: 64,
        },
    )
}

pub fn serve_with(folder: &Folder, options: ServerOptions) -> Served {
    let socket = folder.path().join("nbd.sock");
    let endpoint = Endpoint::Unix(Listener::bind(&socket).unwrap());
    Served {
        server: Server::start(endpoint, options, 2).unwrap(),
        socket,
    }
}
