//! `treaty qemu`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use treaty_qemu_args::{Line, Remark, Severity, Translation, run_flags, translate};

use crate::{output, run};

/// Run the machine that a QEMU command line describes.
///
/// Put `treaty` and `qemu` in front of the options that QEMU gets (its program's name may stay): the same disks, cards and
/// consoles are made with Treaty's devices, and the same kernel is started. Whatever is not taken is named, with what to
/// do instead. Nothing runs while something that matters is not taken (exit code 2), unless --leave-out says so; remarks
/// that do not matter to the guest are only shown with --dry-run.
///
/// Treaty's own options come first. A drive's format is never guessed: every -drive needs format=raw or format=qcow2.
///
/// Example: treaty qemu -enable-kvm -m 4096 -smp 4 -drive file=vm.qcow2,format=qcow2,if=virtio,cache=none -nic
/// user,model=virtio -kernel vmlinuz -initrd initrd.img -append "root=/dev/vda1 console=ttyS0" -nographic
#[derive(clap::Args)]
#[command(override_usage = "treaty qemu [--dry-run [--json]] [--leave-out] [--api PATH] QEMU-OPTIONS...")]
pub struct Args {
    /// Print the `treaty run` command line that is the same, and what is not taken. Runs nothing, opens nothing.
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: as JSON.
    #[arg(long, requires = "dry_run")]
    json: bool,
    /// Run the machine without what is not taken.
    #[arg(long)]
    leave_out: bool,
    /// Answer the control API (`treaty ctl`) on this Unix socket.
    #[arg(long, value_name = "PATH")]
    api: Option<PathBuf>,
    /// QEMU's options, as they are.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "QEMU-OPTIONS"
    )]
    words: Vec<String>,
}

pub fn main(args: Args) -> Result<u8> {
    let line = Line::parse(args.words).map_err(|error| anyhow!("{error}"))?;
    let mut made = translate(&line);
    made.plan.api = args.api;
    if args.dry_run {
        output::print(&if args.json { json(&made)? } else { text(&made)? })?;
        return Ok(code(&made, args.leave_out));
    }
    for remark in made.refused() {
        eprintln!("treaty: {}", one_line(remark));
    }
    if code(&made, args.leave_out) != 0 {
        eprintln!("treaty: nothing was started; change the above, or give --leave-out to run without it");
        return Ok(2);
    }
    let _pidfile = made.pidfile.as_deref().map(PidFile::write).transpose()?;
    run::run(made.plan)
}

fn code(made: &Translation, leave_out: bool) -> u8 {
    if leave_out || made.refused().next().is_none() {
        0
    } else {
        2
    }
}

fn one_line(remark: &Remark) -> String {
    match &remark.part {
        Some(part) => format!("{}: {part}: {}", remark.option, remark.advice),
        None => format!("{}: {}", remark.option, remark.advice),
    }
}

fn text(made: &Translation) -> Result<String> {
    let mut lines = vec![shell_line(&run_flags(&made.plan)?)];
    for (severity, title) in [
        (Severity::Refused, "Not taken:"),
        (
            Severity::Note,
            "Not needed, or otherwise here; the guest works the same:",
        ),
    ] {
        let these = made.remarks.iter().filter(|remark| remark.severity == severity);
        let these: Vec<String> = these.map(|remark| format!("  {}", one_line(remark))).collect();
        if !these.is_empty() {
            lines.push(String::new());
            lines.push(title.to_owned());
            lines.extend(these);
        }
    }
    Ok(lines.join("\n"))
}

fn json(made: &Translation) -> Result<String> {
    let mut command = vec!["treaty".to_owned()];
    command.extend(run_flags(&made.plan)?);
    let value = serde_json::json!({ "command": command, "plan": made.plan, "pidfile": made.pidfile, "remarks": made.remarks });
    Ok(serde_json::to_string_pretty(&value)?)
}

/// The words for a shell to read.
fn shell_line(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+,.:/@%".contains(c);
    let quoted = words.iter().map(|word| match word {
        word if !word.is_empty() && word.chars().all(plain) => word.clone(),
        word => format!("'{}'", word.replace('\'', r"'\''")),
    });
    format!("treaty {}", quoted.collect::<Vec<_>>().join(" "))
}

/// A file with this process's number, while it runs.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: &Path) -> Result<Self> {
        std::fs::write(path, format!("{}\n", std::process::id()))
            .with_context(|| format!("-pidfile {}", path.display()))?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Whoever removed it before us did no harm.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Whole {
        #[command(flatten)]
        args: Args,
        #[arg(short, long, global = true, action = clap::ArgAction::Count)]
        verbose: u8,
    }

    #[derive(Parser)]
    struct RunLine {
        #[command(flatten)]
        args: run::Args,
    }

    #[test]
    fn qemus_words_are_left_alone() {
        let whole =
            Whole::try_parse_from(["qemu", "--dry-run", "-vga", "none", "-m", "1G", "--json", "-help"])
                .unwrap();
        assert_eq!(whole.args.words, ["-vga", "none", "-m", "1G", "--json", "-help"]);
        assert!(whole.args.dry_run && !whole.args.json);
    }

    #[test]
    fn the_printed_command_makes_the_same_machine() {
        let words = "-accel kvm -kernel k -initrd i -append x -m 3G -smp 3 -no-reboot -serial unix:/s,server,nowait \
                     -drive file=a,format=qcow2,if=virtio,cache=directsync -drive file=b,format=raw,if=ide,readonly=on -cdrom c \
                     -netdev tap,id=n,ifname=t,script=no,queues=2 -device virtio-net-pci,netdev=n,packed=on,mac=52:54:00:00:00:01 \
                     -nic user,model=e1000-82545em -device virtio-rng-pci,packed=on -chardev pty,id=c -device virtconsole,chardev=c,name=x \
                     -chardev socket,id=v,path=/v -device vhost-user-fs-pci,chardev=v,tag=t";
        let made = translate(&Line::parse(words.split_whitespace()).unwrap());
        assert_eq!(made.refused().next(), None);
        let flags = run_flags(&made.plan).unwrap();
        assert_eq!(
            RunLine::try_parse_from(&flags).unwrap().args.into_plan().unwrap(),
            made.plan,
            "{flags:?}"
        );
    }

    #[test]
    fn words_with_spaces_are_quoted() {
        let words = ["run", "--cmdline", "a b", "it's", ""].map(str::to_owned);
        assert_eq!(shell_line(&words), r"treaty run --cmdline 'a b' 'it'\''s' ''");
    }
}
