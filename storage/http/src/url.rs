use std::path::PathBuf;
use std::str::FromStr;

use crate::HttpError;

/// Longest URL in bytes.
const MAX_URL: usize = 8192;

/// `http://HOST[:PORT]/PATH?QUERY`, or `https`. Behind `#`, which servers never see, may be `tls-certificates=FOLDER` (with
/// ca-cert.pem).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Path and query, as the server gets it.
    pub(crate) path: String,
    pub(crate) certificates: Option<PathBuf>,
}

impl FromStr for Url {
    type Err = HttpError;

    fn from_str(text: &str) -> Result<Self, HttpError> {
        let wrong = |why: &str| HttpError::Url(format!("{why}; give http://HOST[:PORT]/PATH or https://"));
        // What would end the line of a request may not be in it.
        let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
        if !printable || text.len() > MAX_URL {
            return Err(wrong(
                "the URL is too long or has letters that need % before them",
            ));
        }
        let (tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            _ => return Err(wrong("the scheme is not HTTP's")),
        };
        let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let certificates = match fragment {
            "" => None,
            other => match other.strip_prefix("tls-certificates=") {
                Some(folder) => Some(PathBuf::from(folder)),
                None => return Err(wrong("behind # only tls-certificates=FOLDER is known")),
            },
        };
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        if authority.contains('@') {
            return Err(wrong("names and passwords are not supported"));
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(inside) => inside.split_once(']').ok_or_else(|| wrong("a ] is missing"))?,
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().map_err(|_| wrong("the port is no number"))?,
            None if port.is_empty() => [80, 443][usize::from(tls)],
            None => return Err(wrong("the port is no number")),
        };
        if host.is_empty() {
            return Err(wrong("the host is missing"));
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Self {
            tls,
            host: host.to_owned(),
            port,
            path: format!("{slash}{path}"),
            certificates,
        })
    }
}

impl Url {
    /// Where a redirect leads. Never from https to http.
    pub(crate) fn follow(&self, location: &str) -> Result<Self, HttpError> {
        let mut next: Self = match location.starts_with('/') && !location.starts_with("//") {
            true => format!("{}{location}", self.origin()).parse()?,
            false => location.parse()?,
        };
        if self.tls && !next.tls {
            return Err(HttpError::Url("the server leads from https to http".into()));
        }
        next.certificates.clone_from(&self.certificates);
        Ok(next)
    }

    fn origin(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.authority())
    }

    /// The host as a request names it.
    pub(crate) fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        match (self.tls, self.port) {
            (false, 80) | (true, 443) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn urls_and_where_redirects_lead() {
        let url = parse("https://host:8443/a/b?c=d#tls-certificates=/x");
        assert_eq!(
            (url.host.as_str(), url.port, url.path.as_str()),
            ("host", 8443, "/a/b?c=d")
        );
        assert_eq!(url.authority(), "host:8443");
        assert_eq!(
            (parse("http://h").path.as_str(), parse("http://h").port),
            ("/", 80)
        );
        assert_eq!(parse("http://[::1]:8/x").authority(), "[::1]:8");
        assert_eq!(url.follow("/other").unwrap().path, "/other");
        assert_eq!(url.follow("https://elsewhere/y").unwrap().host, "elsewhere");
        assert!(url.follow("http://elsewhere/y").is_err());
        assert_eq!(url.follow("/o").unwrap().certificates, Some("/x".into()));
    }

    #[test]
    fn what_could_smuggle_a_second_request_is_refused() {
        for text in [
            "http://h/a b",
            "http://h/\r\nX: y",
            "http://u:p@h/",
            "ftp://h/",
            "http:///x",
            "http://h:x/",
        ] {
            assert!(text.parse::<Url>().is_err(), "{text}");
        }
    }
}
