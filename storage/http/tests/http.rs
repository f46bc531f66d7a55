//! Files on a small web server of the test's own, which behaves or not.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::{Disk, Folder, SOON, workers};
use treaty_buffers::AlignedBlock;
use treaty_http::{HttpImage, HttpStore};
use treaty_storage::qcow2::{Backing, Qcow2Options};
use treaty_storage::{BlockImage, Format, OpenOptions, RequestKind, StorageError, Store, Stores, open};
use treaty_stream::{ServerTls, Socket, Stream};
use treaty_worker::sim::Random;

/// What the server does with the next requests.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Good,
    /// Every other answer is 503.
    Busy,
    /// Every third body ends early, with the connection.
    Cut,
    /// The connection is closed after each answer.
    Closing,
    /// Another range than was asked for.
    Wrong,
    /// No ranges at all.
    Whole,
    /// One more redirect.
    Redirect,
    /// Noise instead of an answer.
    Noise,
}

struct Shared {
    content: Mutex<Vec<u8>>,
    version: Mutex<String>,
    mood: Mutex<Mood>,
    requests: AtomicUsize,
    connections: AtomicUsize,
}

struct Site {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Site {
    fn new(content: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            content: Mutex::new(content),
            version: Mutex::new("\"one\"".to_owned()),
            mood: Mutex::new(Mood::Good),
            requests: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
        });
        let site = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let site = site.clone();
                site.connections.fetch_add(1, Ordering::Relaxed);
                std::thread::spawn(move || serve(&site, client));
            }
        });
        Self { shared, address }
    }

    fn url(&self) -> String {
        format!("http://{}/disk.img?a=b", self.address)
    }

    fn mood(&self, mood: Mood) {
        *self.shared.mood.lock().unwrap() = mood;
    }
}

/// Answers requests of one connection; `None` ends it.
fn serve(site: &Shared, mut client: TcpStream) -> Option<()> {
    client.set_read_timeout(Some(SOON)).ok()?;
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            let mut part = [0; 4096];
            match client.read(&mut part).ok()? {
                0 => return None,
                count => buffer.extend(&part[..count]),
            }
        };
        let head = String::from_utf8(buffer.drain(..end).collect()).ok()?;
        answer(site, &mut client, &head)?;
    }
}

fn answer(site: &Shared, client: &mut TcpStream, head: &str) -> Option<()> {
    let number = site.requests.fetch_add(1, Ordering::Relaxed);
    let mood = *site.mood.lock().unwrap();
    assert!(head.starts_with("GET /disk.img?a=b HTTP/1.1\r\n"), "{head}");
    let range = head.lines().find_map(|line| line.strip_prefix("Range: bytes="))?;
    let (first, last) = range.split_once('-')?;
    let (mut first, mut last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
    let content = site.content.lock().unwrap();
    let whole = content.len();
    let version = site.version.lock().unwrap().clone();
    let plain = |text: &str| format!("HTTP/1.1 {text}\r\nContent-Length: 0\r\n\r\n");
    match mood {
        Mood::Busy if number % 2 == 1 => return client.write_all(plain("503 Busy").as_bytes()).ok(),
        Mood::Whole => return client.write_all(plain("200 OK").as_bytes()).ok(),
        Mood::Redirect => {
            *site.mood.lock().unwrap() = Mood::Good;
            let text = "HTTP/1.1 302 Found\r\nLocation: /disk.img?a=b\r\nContent-Length: 0\r\n\r\n";
            return client.write_all(text.as_bytes()).ok();
        }
        Mood::Noise => return client.write_all(&[0x80; 300]).ok(),
        Mood::Wrong => (first, last) = (first.saturating_sub(1), last.saturating_sub(1)),
        _ => {}
    }
    if first >= whole {
        return client
            .write_all(plain("416 Range Not Satisfiable").as_bytes())
            .ok();
    }
    last = last.min(whole - 1);
    let body = &content[first..=last];
    let closing = if mood == Mood::Closing {
        "Connection: close\r\n"
    } else {
        ""
    };
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\nETag: {version}\r\nContent-Range: bytes {first}-{last}/{whole}\r\n\
         Content-Length: {}\r\n{closing}\r\n",
        body.len()
    );
    client.write_all(head.as_bytes()).ok()?;
    if mood == Mood::Cut && number.is_multiple_of(3) {
        client.write_all(&body[..body.len() / 2]).ok()?;
        return None;
    }
    client.write_all(body).ok()?;
    (mood != Mood::Closing).then_some(())
}

fn content(len: usize) -> Vec<u8> {
    let mut random = Random::new(len as u64);
    (0..len).map(|_| random.next_u64() as u8).collect()
}

fn reads_agree(disk: &Disk, content: &[u8], seed: u64, count: u32) {
    let mut random = Random::new(seed);
    let sectors = content.len() as u64 / 512;
    let mut blocks = Vec::new();
    for tag in 0..count {
        let first = random.below(sectors);
        let len = 512 * (1 + random.below((sectors - first).min(200))) as usize;
        let block = AlignedBlock::new(len, 512);
        disk.start(tag, RequestKind::Read { offset: first * 512 }, block.buffers());
        blocks.push((first as usize * 512, block));
    }
    for _ in 0..count {
        disk.end().result.unwrap();
    }
    for (at, block) in blocks {
        let mut bytes = vec![0; block.len()];
        block.buffers().copy_to(&mut bytes);
        assert!(bytes == content[at..at + bytes.len()], "at {at}");
    }
}

#[test]
fn ranges_are_read_over_few_connections() {
    let content = content(4 << 20);
    let site = Site::new(content.clone());
    let image = HttpImage::open(&site.url()).unwrap();
    assert_eq!(image.capabilities().len, 4 << 20);
    for worker in workers() {
        let before = site.shared.connections.load(Ordering::Relaxed);
        let disk = Disk::new(&worker.handle(), &image);
        reads_agree(&disk, &content, 1, 100);
        assert!(disk.read(0, 4 << 20).unwrap() == content);
        assert!(site.shared.connections.load(Ordering::Relaxed) - before <= 4);
        assert!(matches!(
            disk.write(0, &[0; 512], false),
            Err(StorageError::ReadOnly)
        ));
        assert!(matches!(disk.read(4 << 20, 512), Err(StorageError::Invalid(_))));
    }
}

#[test]
fn a_server_that_is_busy_closes_or_cuts_is_asked_again() {
    let content = content(1 << 20);
    let site = Site::new(content.clone());
    let image = HttpImage::open(&site.url()).unwrap();
    for worker in workers() {
        let disk = Disk::new(&worker.handle(), &image);
        for mood in [Mood::Busy, Mood::Cut, Mood::Closing, Mood::Good] {
            site.mood(mood);
            reads_agree(&disk, &content, 2, 12);
        }
        site.mood(Mood::Good);
    }
}

#[test]
fn a_file_that_has_changed_is_an_error_and_not_a_mixture() {
    let site = Site::new(content(1 << 20));
    let image = HttpImage::open(&site.url()).unwrap();
    for worker in workers() {
        let disk = Disk::new(&worker.handle(), &image);
        disk.read(0, 512).unwrap();
        *site.shared.version.lock().unwrap() = "\"two\"".to_owned();
        let error = disk.read(512, 512).unwrap_err().to_string();
        assert!(error.contains("byte 512"), "{error}");
        *site.shared.version.lock().unwrap() = "\"one\"".to_owned();
        disk.read(512, 512).unwrap();
        let longer = vec![0; (1 << 20) + 1];
        let before = std::mem::replace(&mut *site.shared.content.lock().unwrap(), longer);
        disk.read(512, 512).unwrap_err();
        *site.shared.content.lock().unwrap() = before;
    }
}

#[test]
fn servers_that_cannot_or_lie_are_refused() {
    let site = Site::new(content(1 << 20));
    let refused = || HttpImage::open(&site.url()).err().unwrap().to_string();
    site.mood(Mood::Whole);
    assert!(refused().contains("parts of a file"));
    site.mood(Mood::Noise);
    assert!(refused().contains("no HTTP"));
    site.mood(Mood::Redirect);
    HttpImage::open(&site.url()).unwrap();
    let error = HttpImage::open("http://127.0.0.1:1/x").err().unwrap().to_string();
    assert!(error.contains("cannot reach"), "{error}");
    let error = HttpStore.open(&site.url(), false).err().unwrap().to_string();
    assert!(error.contains("read-only"), "{error}");
    // A range that was not asked for is never taken for the one that was.
    let image = HttpImage::open(&site.url()).unwrap();
    let worker = workers().remove(0);
    let disk = Disk::new(&worker.handle(), &image);
    site.mood(Mood::Wrong);
    disk.start(
        1,
        RequestKind::Read { offset: 512 },
        AlignedBlock::new(512, 512).buffers(),
    );
    std::thread::sleep(std::time::Duration::from_millis(100));
    site.mood(Mood::Good);
    disk.end().result.unwrap();
}

#[test]
fn a_file_of_any_length_ends_in_zeroes() {
    let content = content(5000);
    let site = Site::new(content.clone());
    let stores = Stores::new(vec![Arc::new(HttpStore)]);
    let options = OpenOptions {
        read_only: true,
        stores,
        ..OpenOptions::raw(site.url())
    };
    assert_eq!(options.format, Format::Raw);
    let image = open(&options).unwrap();
    assert_eq!(image.capabilities().len, 5120);
    let worker = workers().remove(0);
    let disk = Disk::new(&worker.handle(), &*image);
    let bytes = disk.read(4096, 1024).unwrap();
    assert!(bytes[..904] == content[4096..] && bytes[904..].iter().all(|&byte| byte == 0));
    // A path is a URI only if somebody was given who opens it.
    let error = open(&OpenOptions::raw(site.url())).err().unwrap().to_string();
    assert!(error.contains("only files"), "{error}");
    let error = open(&OpenOptions::raw(Path::new("/no/such/http:file")))
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("no such file"), "{error}");
}

/// A site that speaks TLS: the first `count` clients are answered, each as long as it asks.
fn https_site(folder: &Folder, content: Vec<u8>) -> SocketAddr {
    let certificates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../nbd/tests/tls");
    for name in ["server-cert.pem", "server-key.pem"] {
        std::fs::copy(certificates.join(name), folder.path().join(name)).unwrap();
    }
    let tls = ServerTls::new(folder.path()).unwrap();
    std::fs::copy(
        certificates.join("ca-cert.pem"),
        folder.path().join("ca-cert.pem"),
    )
    .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let content = Arc::new(content);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let (tls, content) = (tls.clone(), content.clone());
            std::thread::spawn(move || serve_protected(client, &tls, &content));
        }
    });
    address
}

fn serve_protected(client: TcpStream, tls: &ServerTls, content: &[u8]) -> Option<()> {
    let mut stream = Stream::new(Socket::Tcp(client)).ok()?;
    stream.start_server_tls(tls).ok()?;
    loop {
        stream.exchange().ok()?;
        if let Some(end) = stream
            .received()
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
        {
            let head = String::from_utf8_lossy(&stream.received()[..end + 4]).into_owned();
            stream.consume(end + 4);
            let range = head.lines().find_map(|line| line.strip_prefix("Range: bytes="))?;
            let (first, last) = range.split_once('-')?;
            let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
            let body = &content[first..=last];
            let (len, whole) = (body.len(), content.len());
            let answer = format!(
                "HTTP/1.1 206 Some\r\nContent-Range: bytes {first}-{last}/{whole}\r\nContent-Length: {len}\r\n\r\n"
            );
            stream.send(answer.as_bytes());
            stream.send(body);
            continue;
        }
        if stream.has_ended() {
            return None;
        }
        stream.sleep(SOON).ok()?;
    }
}

#[test]
fn https_reads_from_servers_with_the_right_certificate_only() {
    let folder = Folder::new("https");
    let content = content(4 << 20);
    let address = https_site(&folder, content.clone());
    let folder = folder.path().display();
    let url = format!("https://localhost:{}/x#tls-certificates={folder}", address.port());
    let image = HttpImage::open(&url).unwrap();
    for worker in workers() {
        let disk = Disk::new(&worker.handle(), &image);
        reads_agree(&disk, &content, 3, 40);
        assert!(disk.read(0, 4 << 20).unwrap() == content);
    }
    // The system's authorities do not know it.
    let stranger = HttpImage::open(&format!("https://localhost:{}/x", address.port()));
    let error = stranger.err().unwrap().to_string();
    assert!(
        error.contains("certificate") || error.contains("authorit"),
        "{error}"
    );
}

#[test]
fn hardening_06_a_clone_reads_from_a_web_server_only_if_its_user_named_it() {
    let folder = Folder::new("clone");
    let content = content(4 << 20);
    let site = Site::new(content.clone());
    let tree = match treaty_lab::peers::trixie() {
        Ok(tree) => tree,
        Err(error) => return println!("SKIPPED: no peers: {error:#}"),
    };
    let clone = folder.path().join("clone.qcow2");
    let mut create = tree.command("qemu-img");
    create
        .args(["create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b"])
        .arg(site.url());
    assert!(create.arg(&clone).arg("4M").status().unwrap().success());
    let open_with = |backing| {
        open(&OpenOptions {
            format: Format::Qcow2,
            stores: Stores::new(vec![Arc::new(HttpStore)]),
            qcow2: Qcow2Options {
                backing,
                ..Qcow2Options::default()
            },
            ..OpenOptions::raw(&clone)
        })
    };
    for forbidden in [
        Backing::Refused,
        Backing::Tree,
        Backing::Within(vec!["http://elsewhere/".into()]),
    ] {
        let requests = site.shared.requests.load(Ordering::Relaxed);
        assert!(open_with(forbidden).is_err());
        assert_eq!(
            site.shared.requests.load(Ordering::Relaxed),
            requests,
            "the server was asked"
        );
    }
    let place = format!("http://{}/", site.address);
    for worker in workers() {
        let disk = Disk::new(
            &worker.handle(),
            &*open_with(Backing::Within(vec![place.clone().into()])).unwrap(),
        );
        reads_agree(&disk, &content, 4, 20);
        disk.write(64 << 10, &content[..4096], false).unwrap();
        assert!(disk.read(64 << 10, 4096).unwrap() == content[..4096]);
        assert!(disk.read(68 << 10, 4096).unwrap() == content[68 << 10..72 << 10]);
        disk.write(64 << 10, &content[64 << 10..68 << 10], false).unwrap();
    }
}
