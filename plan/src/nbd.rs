use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::DiskPlan;
use crate::check::PlanError;

/// A server of network block devices. Exactly one of `socket` and `listen` is given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NbdPlan {
    /// Unix socket to listen on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// TCP address to listen on: `HOST:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// Folder with server-cert.pem and server-key.pem: clients must speak TLS. With ca-cert.pem they must have a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_certificates: Option<PathBuf>,
    /// Clients at a time.
    #[serde(default = "usual_connections")]
    pub max_connections: u16,
    /// Threads that connections are spread over.
    #[serde(default = "one")]
    pub workers: u16,
    /// What is exported.
    #[serde(rename = "export")]
    pub exports: Vec<ExportPlan>,
}

/// One export of an [`NbdPlan`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ExportPlan {
    /// Its name; clients that name none get the one without.
    #[serde(default)]
    pub name: String,
    /// The image. What is said of queues, workers and transports has no meaning here.
    pub disk: DiskPlan,
}

impl NbdPlan {
    /// Clients at a time, if nobody says otherwise.
    pub const USUAL_CONNECTIONS: u16 = 16;

    /// Refuses values out of range and impossible combinations. Touches no file.
    pub fn check(&self) -> Result<(), PlanError> {
        let refuse = |text: String| Err(PlanError::new(text));
        if self.socket.is_some() == self.listen.is_some() {
            return refuse("nbd: give exactly one of socket and listen".into());
        }
        if !(1..=1024).contains(&self.max_connections) || !(1..=32).contains(&self.workers) {
            return refuse("nbd: 1 to 1024 connections and 1 to 32 workers are allowed".into());
        }
        if self.exports.is_empty() {
            return refuse("nbd: there is no export".into());
        }
        for (index, export) in self.exports.iter().enumerate() {
            let named = |text: String| PlanError::new(format!("export {:?}: {text}", export.name));
            if export.name.len() > 4096 {
                return Err(named("the name is longer than 4096 bytes".into()));
            }
            let same = |other: &ExportPlan| other.name == export.name;
            if self.exports.iter().skip(index + 1).any(same) {
                return Err(named("the name is given twice".into()));
            }
            crate::Served::Disk(&export.disk)
                .check()
                .map_err(|error| named(error.to_string()))?;
        }
        Ok(())
    }
}

fn usual_connections() -> u16 {
    NbdPlan::USUAL_CONNECTIONS
}

fn one() -> u16 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<(), String> {
        let plan: NbdPlan = toml::from_str(text).unwrap();
        plan.check().map_err(|error| error.to_string())
    }

    #[test]
    fn a_server_has_one_address_and_names_once() {
        let disk = "disk={path='d',format='raw'}";
        assert_eq!(check(&format!("socket='/s'\n[[export]]\n{disk}")), Ok(()));
        assert_eq!(
            check(&format!(
                "listen='[::]:1'\n[[export]]\nname='a'\n{disk}\n[[export]]\n{disk}"
            )),
            Ok(())
        );
        let refused = |text: &str| check(text).unwrap_err();
        assert!(refused(&format!("[[export]]\n{disk}")).contains("exactly one"));
        assert!(refused("socket='/s'\nexport=[]").contains("no export"));
        assert!(refused(&format!("socket='/s'\n[[export]]\n{disk}\n[[export]]\n{disk}")).contains("twice"));
        assert!(refused(&format!("socket='/s'\nworkers=0\n[[export]]\n{disk}")).contains("workers"));
        let stop = "disk={path='d',format='raw',on-error='stop'}";
        assert!(refused(&format!("socket='/s'\n[[export]]\n{stop}")).contains("on-error"));
    }
}
