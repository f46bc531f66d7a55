//! A web server at the far end of a daemon's tap, in a network namespace of their own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cache::Cache;
use crate::{exec, qemu};

/// A daemon that connects to QEMU is not waited for.
const LIMIT: Duration = Duration::from_secs(60);
/// Bytes of what it serves.
const DATA: usize = 4 << 20;

/// A command that runs `program` in a new network namespace. Who is not root gets a user namespace with it.
pub fn in_own_network(program: &Path) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--net", "--"])
        .arg(program);
    command
}

/// Sets up `tap0` in the namespace of process `pid` and starts the server there.
pub fn server(cache: &Cache, dir: &Path, pid: u32, address: &str) -> Result<Child> {
    let busybox = cache.busybox()?;
    let home = dir.join("www");
    fs::create_dir_all(home.join("cgi-bin"))?;
    let shell = busybox.display();
    let script = format!(
        "#!{shell} sh\necho 'Content-Type: text/plain'\necho\n{shell} md5sum | {shell} cut -d' ' -f1\n"
    );
    let sum = home.join("cgi-bin/sum");
    fs::write(&sum, script)?;
    fs::set_permissions(&sum, fs::Permissions::from_mode(0o755))?;
    if !home.join("data").exists() {
        let mut data = vec![0; DATA];
        std::io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut data)?;
        fs::write(home.join("data"), data)?;
        let sum = exec::run(Command::new(&busybox).arg("md5sum").arg(home.join("data")))?;
        let sum = sum.split_whitespace().next().context("md5sum says nothing")?;
        fs::write(home.join("data.sum"), format!("{sum}\n"))?;
    }
    let there = || {
        let mut command = Command::new("nsenter");
        command.args([
            "--user",
            "--net",
            "--preserve-credentials",
            "--target",
            &pid.to_string(),
            "--",
        ]);
        command.arg(&busybox);
        command
    };
    let interface = || exec::run(there().args(["ip", "link", "show", "tap0"])).is_ok();
    let deadline = Instant::now() + LIMIT;
    while !interface() {
        ensure!(Instant::now() < deadline, "the daemon makes no tap");
        std::thread::sleep(Duration::from_millis(50));
    }
    exec::run(there().args(["ip", "addr", "add", &format!("{address}/24"), "dev", "tap0"]))?;
    exec::run(there().args(["ip", "link", "set", "tap0", "up"]))?;
    let mut server = there();
    server
        .args(["httpd", "-f", "-p", &format!("{address}:80"), "-h"])
        .arg(&home);
    qemu::dying_with_parent(&server)
        .spawn()
        .context("cannot start a web server")
}
