//! `treaty serve nbd`

use std::net::TcpListener;
use std::path::PathBuf;

use anyhow::Context;
use treaty_catalog::{DiskContext, export};
use treaty_listen::Listener;
use treaty_nbd::{Endpoint, Server, ServerOptions, ServerTls};
use treaty_plan::{ExportPlan, NbdPlan};

use crate::config;

/// An image over the network or a Unix socket, for any NBD client: nbd://HOST/NAME, nbd+unix:///NAME?socket=PATH
#[derive(clap::Args)]
pub struct Args {
    /// Listen on this Unix socket.
    #[arg(
        long,
        value_name = "PATH",
        required_unless_present = "listen",
        conflicts_with = "listen"
    )]
    socket: Option<PathBuf>,
    /// Listen on this TCP address. NBD's port is 10809. Without --tls-certificates anybody who reaches it has the image.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// path=FILE|URI,format=raw[,readonly][,cache=MODE][,iops=N][,bps=N]
    #[arg(long, value_name = "KEY=VALUE,...")]
    disk: String,
    /// The export's name.
    #[arg(long, value_name = "NAME", default_value = "")]
    export: String,
    /// Speak TLS only, with server-cert.pem and server-key.pem in this folder. If it has ca-cert.pem, clients need a
    /// certificate too.
    #[arg(long, value_name = "FOLDER")]
    tls_certificates: Option<PathBuf>,
    /// Clients at a time.
    #[arg(long, value_name = "N", default_value_t = NbdPlan::USUAL_CONNECTIONS)]
    max_connections: u16,
    /// Threads that clients are spread over.
    #[arg(long, value_name = "N", default_value_t = 1)]
    workers: u16,
}

impl Args {
    pub fn into_plan(self) -> anyhow::Result<NbdPlan> {
        Ok(NbdPlan {
            socket: self.socket,
            listen: self.listen,
            tls_certificates: self.tls_certificates,
            max_connections: self.max_connections,
            workers: self.workers,
            exports: vec![ExportPlan {
                name: self.export,
                disk: config::device("--disk", &self.disk, None)?,
            }],
        })
    }
}

/// Opens what the plan names and serves it until dropped.
pub fn start(plan: &NbdPlan, context: &mut DiskContext) -> anyhow::Result<Server> {
    plan.check()?;
    let exports = plan
        .exports
        .iter()
        .map(|plan| export(&plan.name, &plan.disk, context));
    let options = ServerOptions {
        exports: exports.collect::<Result<_, _>>()?,
        tls: match &plan.tls_certificates {
            Some(folder) => Some(ServerTls::new(folder)?),
            None => None,
        },
        max_connections: plan.max_connections.into(),
    };
    let endpoint = match (&plan.socket, &plan.listen) {
        (Some(path), _) => Endpoint::Unix(Listener::bind(path)?),
        (None, address) => {
            let address = address.as_deref().unwrap_or_default();
            let listener = TcpListener::bind(address);
            Endpoint::Tcp(listener.with_context(|| format!("cannot listen on {address}"))?)
        }
    };
    Server::start(endpoint, options, plan.workers.into()).context("cannot start the server")
}
