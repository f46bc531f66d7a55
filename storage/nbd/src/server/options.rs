use std::sync::Arc;

use treaty_storage::BlockImage;
use treaty_stream::ServerTls;

use crate::wire::export_flag;

/// An image that is exported.
#[derive(Clone)]
pub struct Export {
    /// Its name; clients that give none get the export without a name.
    pub name: String,
    /// The image. Each connection has a queue of it.
    pub image: Arc<dyn BlockImage>,
    /// Clients may not write.
    pub read_only: bool,
    /// Every write is durable before it is answered.
    pub writes_through: bool,
}

impl Export {
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only || self.image.capabilities().read_only
    }

    /// What the protocol says of it.
    pub(crate) fn flags(&self) -> u16 {
        let capabilities = self.image.capabilities();
        let mut flags = export_flag::HAS_FLAGS
            | export_flag::SEND_FLUSH
            | export_flag::SEND_DF
            // All queues are of one image, and a flush is one of the image.
            | export_flag::CAN_MULTI_CONN;
        if self.is_read_only() {
            return flags | export_flag::READ_ONLY;
        }
        flags |= export_flag::SEND_FUA;
        if capabilities.discard {
            flags |= export_flag::SEND_TRIM;
        }
        if capabilities.write_zeroes {
            flags |= export_flag::SEND_WRITE_ZEROES;
        }
        flags
    }
}

/// What a server offers, and to how many.
#[derive(Clone)]
pub struct ServerOptions {
    /// The exports; names are unique.
    pub exports: Vec<Export>,
    /// Clients must speak TLS.
    pub tls: Option<ServerTls>,
    /// Connections at a time; further ones are closed at once.
    pub max_connections: usize,
}

impl ServerOptions {
    pub(crate) fn find(&self, name: &str) -> Option<&Export> {
        self.exports.iter().find(|export| export.name == name)
    }
}
