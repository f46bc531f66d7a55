//! Whole machines with guests of a few instructions, on this host's KVM: how a machine ends, starts again, stops and goes on.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use treaty_vmm::api::{Control, MachineState};
use treaty_vmm::plan::{CharTarget, MachinePlan, MemorySize, from_flag};
use treaty_vmm::{BuildError, End, Runner, Vm};

/// `mov dx, 0x604; mov ax, SLP_EN | S5; out dx, ax; hlt`
const POWER_OFF: &[u8] = &[0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x01, 0x34, 0x66, 0xef, 0xf4];
/// `mov al, 0xfe; out 0x64, al; jmp $`
const KEYBOARD_RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe];
/// `mov dx, 0x60c; mov al, 1; out dx, al; jmp $`
const ACPI_RESET: &[u8] = &[0x66, 0xba, 0x0c, 0x06, 0xb0, 0x01, 0xee, 0xeb, 0xfe];
/// `int 3`, without an interrupt table.
const TRIPLE_FAULT: &[u8] = &[0xcd, 0x03];
/// `mov al, 'x'; mov dx, 0x3f8; out dx, al; jmp -3`
const PRINT_FOR_EVER: &[u8] = &[0xb0, b'x', 0x66, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xfd];

/// Nothing here takes long; this is only for a test that hangs.
const PATIENCE: Duration = Duration::from_secs(120);

struct Guest {
    directory: PathBuf,
    plan: MachinePlan,
}

impl Guest {
    fn new(name: &str, code: &[u8]) -> Self {
        let directory = std::env::temp_dir().join(format!("treaty-life-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let kernel = directory.join("kernel");
        std::fs::write(&kernel, pvh_elf(code)).unwrap();
        let plan = MachinePlan {
            kernel: Some(kernel),
            memory: MemorySize::mib(16),
            serial: CharTarget::File(directory.join("serial")),
            ..MachinePlan::default()
        };
        Self { directory, plan }
    }

    /// `None`, and a line that says why, where there is no usable KVM.
    fn build(&self) -> Option<Runner> {
        match Runner::new(self.plan.clone()) {
            Ok(runner) => Some(runner),
            Err(BuildError::Kvm(error)) => {
                println!("SKIPPED: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn serial_len(&self) -> u64 {
        std::fs::metadata(self.directory.join("serial")).unwrap().len()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// An ELF image with one segment at 1 MiB and a PVH note that points to it.
fn pvh_elf(code: &[u8]) -> Vec<u8> {
    const AT: u64 = 0x10_0000;
    let words = |words: &[u64]| {
        words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    image.extend(words(&[AT, 64, 0]));
    image.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let note = [4, 4, 18]
        .iter()
        .flat_map(|word: &u32| word.to_le_bytes())
        .collect::<Vec<u8>>();
    let note = [note.as_slice(), b"Xen\0", &(AT as u32).to_le_bytes()].concat();
    let (note_len, code_len) = (note.len() as u64, code.len() as u64);
    image.extend(words(&[0x5_0000_0001, 0x200, AT, AT, code_len, code_len, 4]));
    image.extend(words(&[0x4_0000_0004, 0x180, 0, 0, note_len, note_len, 4]));
    image.resize(0x180, 0);
    image.extend(note);
    image.resize(0x200, 0);
    image.extend(code);
    image
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs the machine while `control` does something to it.
fn run_with(runner: Runner, control: impl FnOnce(Vm) + Send + 'static) -> End {
    let vm = runner.vm();
    let thread = std::thread::spawn(move || control(vm));
    let end = runner.run().unwrap();
    thread.join().unwrap();
    end
}

#[test]
fn power_off_ends_it() {
    let guest = Guest::new("off", POWER_OFF);
    let Some(runner) = guest.build() else { return };
    let vm = runner.vm();
    assert_eq!(vm.status().state, MachineState::Starting);
    assert_eq!(runner.run().unwrap(), End::PowerOff);
    assert_eq!(vm.status().state, MachineState::Stopped);
    assert!(vm.pause().is_err() && vm.resume().is_err() && vm.quit().is_err() && vm.power_button().is_err());
}

#[test]
fn both_resets_start_it_again() {
    for (name, code) in [("i8042", KEYBOARD_RESET), ("acpi", ACPI_RESET)] {
        let mut guest = Guest::new(name, code);
        // Devices and vCPUs are made anew at every boot, back-ends are kept.
        guest.plan.cpus = 2;
        guest.plan.rng = Some(from_flag("", None).unwrap());
        let Some(runner) = guest.build() else { return };
        let end = run_with(runner, |vm| {
            wait_until("it reboots", || vm.status().reboots >= 3);
            vm.quit().unwrap();
        });
        assert_eq!(end, End::Quit);
    }
}

#[test]
fn a_guest_that_only_faults_is_a_crash() {
    let guest = Guest::new("fault", TRIPLE_FAULT);
    let Some(runner) = guest.build() else { return };
    assert!(matches!(runner.run().unwrap(), End::Crash(_)));
}

#[test]
fn a_paused_machine_does_nothing_and_goes_on_from_there() {
    let mut guest = Guest::new("pause", PRINT_FOR_EVER);
    guest.plan.rng = Some(from_flag("transport=mmio", None).unwrap());
    let Some(runner) = guest.build() else { return };
    let vm = runner.vm();
    let machine = std::thread::spawn(move || runner.run().unwrap());
    wait_until("it prints", || guest.serial_len() > 0);
    for _ in 0..20 {
        vm.pause().unwrap();
        assert_eq!(vm.status().state, MachineState::Paused);
        let len = guest.serial_len();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(guest.serial_len(), len, "something ran while it was paused");
        vm.resume().unwrap();
        wait_until("it prints again", || guest.serial_len() > len);
    }
    let devices = vm.devices();
    assert_eq!((devices.len(), devices[0].transport.as_str()), (1, "mmio"));
    vm.pause().unwrap();
    vm.quit().unwrap();
    assert_eq!(machine.join().unwrap(), End::Quit);
}

#[test]
fn what_cannot_be_built_is_refused_and_changes_nothing() {
    let mut guest = Guest::new("refused", POWER_OFF);
    if guest.build().is_none() {
        return;
    }
    let image = guest.directory.join("odd");
    std::fs::write(&image, [7; 1000]).unwrap();
    let disk = format!("path={},format=raw", image.display());
    guest.plan.disks.push(from_flag(&disk, None).unwrap());
    let refused = Runner::new(guest.plan.clone()).err().unwrap().to_string();
    assert!(
        refused.starts_with("disk0: ") && refused.contains("1000 bytes"),
        "{refused}"
    );
    assert_eq!(std::fs::read(&image).unwrap(), [7; 1000]);
    guest.plan.disks.clear();
    guest.plan.kernel = Some("/nonexistent/kernel".into());
    let refused = Runner::new(guest.plan.clone()).err().unwrap().to_string();
    assert!(
        refused.starts_with("cannot read kernel /nonexistent/kernel"),
        "{refused}"
    );
}
