use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use treaty_stream::{Address, ClientTls};

use crate::NbdError;
use crate::wire::{DEFAULT_PORT, MAX_STRING};

/// How long requests wait for a server that has gone away, if the URI does not say.
const RECONNECT: Duration = Duration::from_secs(30);

/// Where an export is: `nbd://HOST[:PORT]/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`, and `nbds`, `nbds+unix` with TLS. Beside
/// `socket`, the query may have `tls-certificates=FOLDER` (ca-cert.pem, client-cert.pem, client-key.pem), `tls-hostname=NAME`
/// and `reconnect=SECONDS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    /// Host and port, or none for a Unix socket.
    pub host: Option<(String, u16)>,
    /// Unix socket.
    pub socket: Option<PathBuf>,
    /// Name of the export, often empty.
    pub export: String,
    /// Speak TLS or not at all.
    pub tls: bool,
    /// Folder of certificates; the system's authorities without it.
    pub certificates: Option<PathBuf>,
    /// Name in the server's certificate, if it is not the host's.
    pub tls_hostname: Option<String>,
    /// How long requests wait for a server that has gone away.
    pub reconnect: Duration,
}

impl FromStr for NbdUri {
    type Err = NbdError;

    fn from_str(text: &str) -> Result<Self, NbdError> {
        let wrong = |why: &str| {
            NbdError::Uri(format!(
                "{text}: {why}; give nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH"
            ))
        };
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| wrong("there is no scheme"))?;
        let (tls, unix) = match scheme {
            "nbd" => (false, false),
            "nbds" => (true, false),
            "nbd+unix" => (false, true),
            "nbds+unix" => (true, true),
            _ => return Err(wrong("the scheme is not NBD's")),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let export = decode(export).ok_or_else(|| wrong("the export's name is not what it should be"))?;
        if export.len() > MAX_STRING {
            return Err(wrong("the export's name is too long"));
        }
        let mut uri = Self {
            host: None,
            socket: None,
            export,
            tls,
            certificates: None,
            tls_hostname: None,
            reconnect: RECONNECT,
        };
        for item in query.split('&').filter(|item| !item.is_empty()) {
            uri.parameter(item).map_err(|why| wrong(&why))?;
        }
        match (unix, authority.is_empty(), uri.socket.is_some()) {
            (true, true, true) => {}
            (true, false, _) => return Err(wrong("a Unix socket has no host")),
            (true, _, false) => return Err(wrong("the socket is missing")),
            (false, _, true) => return Err(wrong("a socket needs the scheme nbd+unix or nbds+unix")),
            (false, true, _) => return Err(wrong("the host is missing")),
            (false, false, false) => {
                uri.host = Some(host_and_port(authority).ok_or_else(|| wrong("the port is no number"))?);
            }
        }
        Ok(uri)
    }
}

impl NbdUri {
    fn parameter(&mut self, item: &str) -> Result<(), String> {
        let (key, value) = item
            .split_once('=')
            .ok_or_else(|| format!("{item} has no value"))?;
        let value = decode(value).ok_or_else(|| format!("{item} is not what it should be"))?;
        match key {
            "socket" => self.socket = Some(value.into()),
            "tls-certificates" => self.certificates = Some(value.into()),
            "tls-hostname" => self.tls_hostname = Some(value),
            "reconnect" => {
                let seconds = value
                    .parse::<u32>()
                    .map_err(|_| format!("{item} is no whole number of seconds"))?;
                self.reconnect = Duration::from_secs(u64::from(seconds));
            }
            "tls-psk-file" => {
                return Err("keys shared beforehand (PSK) are not supported, certificates are".into());
            }
            _ => return Err(format!("{key} is not known")),
        }
        Ok(())
    }

    /// Looks up the host.
    pub(crate) fn address(&self) -> Result<Address, NbdError> {
        match (&self.host, &self.socket) {
            (Some((host, port)), _) => Ok(Address::resolve(host, *port)?),
            (None, Some(path)) => Ok(Address::Unix(path.clone())),
            (None, None) => Err(NbdError::Uri("no host and no socket".into())),
        }
    }

    /// Reads the certificates.
    pub(crate) fn client_tls(&self) -> Result<Option<ClientTls>, NbdError> {
        if !self.tls {
            return Ok(None);
        }
        let host = self.host.as_ref().map(|(host, _)| host.as_str());
        let name = self.tls_hostname.as_deref().or(host).unwrap_or("localhost");
        Ok(Some(ClientTls::new(name, self.certificates.as_deref())?))
    }
}

fn host_and_port(authority: &str) -> Option<(String, u16)> {
    // [v6]:port, [v6], host:port, host
    let (host, rest) = match authority.strip_prefix('[') {
        Some(inside) => inside.split_once(']')?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = match rest.strip_prefix(':') {
        Some(port) => port.parse().ok()?,
        None if rest.is_empty() => DEFAULT_PORT,
        None => return None,
    };
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

/// Replaces %xx.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> NbdUri {
        text.parse().unwrap()
    }

    fn refused(text: &str) -> String {
        text.parse::<NbdUri>().unwrap_err().to_string()
    }

    #[test]
    fn every_form_of_a_uri() {
        let uri = parse("nbd://host");
        assert_eq!(
            (uri.host, uri.export.as_str()),
            (Some(("host".into(), 10809)), "")
        );
        let uri = parse("nbds://[::1]:99/a%20b/c?tls-certificates=/x&reconnect=5");
        assert_eq!(uri.host, Some(("::1".into(), 99)));
        assert_eq!((uri.export.as_str(), uri.tls), ("a b/c", true));
        assert_eq!(
            (uri.certificates, uri.reconnect.as_secs()),
            (Some("/x".into()), 5)
        );
        let uri = parse("nbd+unix:///disk?socket=/run/x%3Fy");
        assert_eq!(
            (uri.socket, uri.export.as_str()),
            (Some("/run/x?y".into()), "disk")
        );
        assert!(parse("nbds+unix:///?socket=s&tls-hostname=h").tls);
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        assert!(refused("nbd:///x").contains("the host is missing"));
        assert!(refused("nbd+unix:///x").contains("the socket is missing"));
        assert!(refused("nbd://h:x/").contains("the port is no number"));
        assert!(refused("nbd://h/%zz").contains("export's name"));
        assert!(refused("nbd://h/?colour=red").contains("colour is not known"));
        assert!(refused("nbds://h/?tls-psk-file=k").contains("PSK"));
        assert!(refused("http://h/").contains("scheme"));
    }
}
