use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use crate::{Chardev, OUTPUT_LIMIT, Pump, sys};

fn wait_for_input(chardev: &Chardev, dst: &mut [u8]) -> usize {
    loop {
        let count = chardev.read(dst);
        if count > 0 {
            return count;
        }
        let fd = chardev.input_fd().expect("input has not ended");
        sys::poll([(fd, libc::POLLIN)], -1).unwrap();
    }
}

#[test]
fn a_file_is_emptied_or_appended_to() {
    let path = std::env::temp_dir().join(format!("treaty-chardev-file-{}", std::process::id()));
    for (append, text, expected) in [(false, "one", "one"), (true, "two", "onetwo"), (false, "x", "x")] {
        let chardev = Chardev::file(&path, append).unwrap();
        assert_eq!(chardev.write(text.as_bytes()), text.len());
        assert_eq!(chardev.input_fd(), None);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
    }
    std::fs::remove_file(&path).unwrap();
    let missing = Chardev::file(&path.join("not-a-directory"), false).err().unwrap();
    assert!(missing.to_string().contains("not-a-directory"), "{missing}");
}

#[test]
fn a_pty_carries_bytes_unchanged_both_ways() {
    let chardev = Chardev::pty().unwrap();
    let path = chardev.pty_path().unwrap().to_owned();
    let mut far = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    assert_eq!(chardev.write(b"a\nb"), 3);
    let mut bytes = [0; 3];
    far.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"a\nb", "no line-end translation");
    far.write_all(b"\x03in\r").unwrap();
    assert_eq!(wait_for_input(&chardev, &mut [0; 8]), 4);
    drop(far);
    assert_eq!(chardev.read(&mut [0; 8]), 0);
    assert!(chardev.input_fd().is_some(), "somebody may attach again");
}

#[test]
fn a_socket_serves_one_client_after_another() {
    let path = std::env::temp_dir().join(format!("treaty-chardev-socket-{}", std::process::id()));
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let chardev = Chardev::socket(&path).expect("a stale socket file is replaced");
    assert!(Chardev::socket(&path).is_err(), "a live one is not");
    assert_eq!(chardev.write(b"lost"), 4);
    assert_eq!(chardev.dropped_bytes(), 4);
    for round in 0..3u8 {
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(&[round]).unwrap();
        let mut byte = [0xff];
        assert_eq!(wait_for_input(&chardev, &mut byte), 1);
        assert_eq!(byte, [round]);
        assert!(chardev.connected());
        assert_eq!(chardev.write(b"hello"), 5);
        let mut text = [0; 5];
        client.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hello");
        drop(client);
        // The writer may notice first; only the reader lets go.
        chardev.write(b"?");
        assert_eq!(chardev.read(&mut byte), 0);
        assert!(!chardev.connected());
    }
    drop(chardev);
    assert!(!path.exists(), "the socket file goes with the endpoint");
}

#[test]
fn a_slow_reader_bounds_the_buffer_and_drops_are_counted() {
    let (chardev, mut far) = Chardev::pair().unwrap();
    let block = [0x55; 4096];
    let mut taken = 0;
    loop {
        let count = chardev.write(&block);
        taken += count;
        if count < block.len() {
            break;
        }
    }
    assert!(taken >= OUTPUT_LIMIT);
    assert_eq!(chardev.write(&block), 0, "full");
    assert_eq!(chardev.dropped_bytes(), 0);
    chardev.write_lossy(&block);
    assert_eq!(chardev.dropped_bytes(), 4096);
    assert!(chardev.output_fd().is_some());
    let mut received = 0;
    far.set_nonblocking(true).unwrap();
    let mut buffer = vec![0; 1 << 20];
    while received < taken {
        chardev.flush();
        received += far.read(&mut buffer).unwrap();
    }
    assert_eq!(received, taken, "everything that was taken arrives");
    assert!(chardev.flush() && chardev.output_fd().is_none());
    drop(far);
    assert_eq!(chardev.write(b"x"), 1);
    assert_eq!(chardev.dropped_bytes(), 4097, "nobody is there any more");
    assert_eq!(chardev.read(&mut buffer), 0);
    assert!(!chardev.connected() && chardev.input_fd().is_none());
}

#[test]
fn a_pump_waits_for_its_sink_and_flushes_output() {
    let (chardev, mut far) = Chardev::pair().unwrap();
    let (send, receive) = mpsc::sync_channel::<u8>(4);
    let pump = Pump::start("pump", chardev.clone(), move |bytes| {
        bytes
            .iter()
            .take_while(|byte| send.try_send(**byte).is_ok())
            .count()
    })
    .unwrap();
    assert!(Pump::start("second", chardev.clone(), <[u8]>::len).is_err());
    far.write_all(&(0..100).collect::<Vec<u8>>()).unwrap();
    for expected in 0..100 {
        assert_eq!(receive.recv().unwrap(), expected);
        pump.wake();
    }
    // More than the kernel takes: the pump passes on the rest while the writer does nothing.
    let total = chardev.write(&vec![7; 1 << 20]);
    let mut back = vec![0; total];
    far.read_exact(&mut back).unwrap();
    assert!(chardev.output_fd().is_none());
}

const CHILD: &str = "TREATY_CHARDEV_CHILD";

/// Runs in a child process of the test below, with a pty as standard input.
#[test]
fn child_that_uses_the_terminal() {
    let Ok(end) = std::env::var(CHILD) else {
        return;
    };
    let chardev = Chardev::stdio(|| std::process::exit(7)).unwrap();
    assert!(Chardev::stdio(|| ()).is_err(), "one at a time");
    chardev.write_lossy(b"ready\n");
    let mut bytes = [0; 16];
    loop {
        let count = wait_for_input(&chardev, &mut bytes);
        chardev.write_lossy(&bytes[..count]);
        match end.as_str() {
            "exit" => std::process::exit(7),
            "panic" => panic!("as asked"),
            _ => {}
        }
    }
}

#[test]
fn the_terminal_is_restored_however_the_process_ends() {
    let terminal_flags = |fd| {
        let settings = sys::terminal_settings(fd).unwrap();
        (settings.c_lflag, settings.c_iflag, settings.c_oflag)
    };
    for (end, input) in [("exit", "q"), ("panic", "q"), ("signal", ""), ("quit", "\x01x")] {
        let mut pty = sys::open_pty().unwrap();
        let fd = pty.slave.as_raw_fd();
        let before = terminal_flags(fd);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::child_that_uses_the_terminal", "--nocapture"])
            .env(CHILD, end)
            .stdin(pty.slave.try_clone().unwrap())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = child.stdout.take().unwrap();
        let mut text = String::new();
        while !text.ends_with("ready\n") {
            let mut byte = [0];
            output.read_exact(&mut byte).unwrap();
            text.push(byte[0].into());
        }
        assert_ne!(terminal_flags(fd), before, "{end}: raw mode");
        pty.master.write_all(input.as_bytes()).unwrap();
        if end == "signal" {
            let pid = child.id().to_string();
            assert!(
                Command::new("kill")
                    .args(["-TERM", &pid])
                    .status()
                    .unwrap()
                    .success()
            );
        }
        let status = child.wait().unwrap();
        assert!(!status.success(), "{end}: {status}");
        assert_eq!(terminal_flags(fd), before, "{end}: restored");
    }
}
