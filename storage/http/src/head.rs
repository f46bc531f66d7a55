use crate::HttpError;

/// Longest head of an answer in bytes, and the most fields in it.
pub(crate) const MAX_HEAD: usize = 64 << 10;
const MAX_FIELDS: usize = 100;

/// What matters of an answer's head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: u16,
    /// Bytes of the answer before its body.
    pub(crate) len: usize,
    /// Bytes of the body.
    pub(crate) body: Option<u64>,
    /// First and last byte of the range, and the length of the whole file.
    pub(crate) range: Option<(u64, u64, u64)>,
    /// What changes when the file does: its ETag, or when it was last modified.
    pub(crate) version: Option<String>,
    pub(crate) location: Option<String>,
    /// The connection ends after this answer.
    pub(crate) closes: bool,
}

impl Head {
    /// Reads the head of an answer; `None` if it is not all there yet.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Self>, HttpError> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        let parsed = response.parse(&bytes[..bytes.len().min(MAX_HEAD)]);
        let len = match parsed {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Ok(None),
            _ => return Err(HttpError::Answer("this is no HTTP, or too much of it")),
        };
        let mut head = Self {
            status: response.code.unwrap_or_default(),
            len,
            closes: response.version == Some(0),
            ..Self::default()
        };
        let mut modified = None;
        for field in response.headers.iter() {
            let Ok(value) = std::str::from_utf8(field.value) else {
                continue;
            };
            let value = value.trim();
            match field.name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    let len = value
                        .parse()
                        .map_err(|_| HttpError::Answer("a length that is none"))?;
                    if head.body.replace(len).is_some_and(|other| other != len) {
                        return Err(HttpError::Answer("two lengths"));
                    }
                }
                "content-range" => head.range = content_range(value),
                "etag" => head.version = Some(value.to_owned()),
                "last-modified" => modified = Some(value.to_owned()),
                "location" => head.location = Some(value.to_owned()),
                "connection" if value.eq_ignore_ascii_case("close") => head.closes = true,
                "transfer-encoding" => {
                    return Err(HttpError::Answer("a body in chunks where a range was asked for"));
                }
                _ => {}
            }
        }
        head.version = head.version.or(modified);
        Ok(Some(head))
    }
}

/// `bytes FIRST-LAST/LENGTH`
fn content_range(value: &str) -> Option<(u64, u64, u64)> {
    let (range, len) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, len) = (first.parse().ok()?, last.parse().ok()?, len.parse().ok()?);
    (first <= last && last < len).then_some((first, last, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_whole_and_checked() {
        let text = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-9/100\r\ncontent-length: 5\r\nETag: \"x\"\r\n\r\nhello";
        let head = Head::parse(text).unwrap().unwrap();
        assert_eq!(
            (head.status, head.body, head.range),
            (206, Some(5), Some((5, 9, 100)))
        );
        assert_eq!((head.version.as_deref(), head.closes), (Some("\"x\""), false));
        assert_eq!(&text[head.len..], b"hello");
        assert_eq!(Head::parse(&text[..40]).unwrap(), None);
        assert!(Head::parse(b"220 ftp ready\r\n\r\n").is_err());
        assert!(Head::parse(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n").is_err());
        assert!(Head::parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
        let many = format!("HTTP/1.1 200 OK\r\n{}", "a: b\r\n".repeat(20_000));
        assert!(Head::parse(many.as_bytes()).is_err());
        for range in [
            "bytes 9-5/100",
            "bytes 5-100/100",
            "bytes 5-9/*",
            "bytes x-9/100",
            "items 1-2/3",
        ] {
            assert_eq!(content_range(range), None, "{range}");
        }
    }
}
