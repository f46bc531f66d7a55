//! A few instructions of 32-bit guest code on this host's KVM: every kind of exit that the monitor answers, doorbells and kicks.
//! Where KVM interprets guest kernel code this still works, only slower.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use treaty_kvm::{Entry, EventAddress, Exit, Kvm, KvmError, Vcpu, Vm};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MEMORY_LEN: usize = 0x4000;
const CODE: usize = 0x1000;
const GDT: usize = 0x500;
const DOORBELL: u64 = 0x10_0000;

/// Guest memory that is unmapped after the VM that uses it.
struct Machine {
    vcpu: Vcpu,
    vm: Vm,
    memory: NonNull<libc::c_void>,
}

impl Machine {
    /// Runs `code` at the PVH entry; `None`, and a line that says why, where there is no usable KVM.
    fn new(code: &[u8]) -> Option<Self> {
        let kvm = match Kvm::open() {
            Ok(kvm) => kvm,
            Err(error @ (KvmError::Missing | KvmError::Permission)) => {
                println!("SKIPPED: {error}");
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let vm = kvm.create_vm(1).unwrap();
        // SAFETY: a fresh anonymous mapping, checked below.
        let memory = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(std::ptr::null_mut(), MEMORY_LEN, access, flags, -1, 0)
        };
        assert_ne!(memory, libc::MAP_FAILED);
        let table = [
            0u64,
            0,
            0x00cf_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x0000_8b00_0000_0067,
        ];
        let table: Vec<u8> = table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        for (at, bytes) in [(GDT, table.as_slice()), (CODE, code)] {
            assert!(at + bytes.len() <= MEMORY_LEN);
            // SAFETY: inside the mapping, which nothing else uses yet.
            unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory.cast::<u8>().add(at), bytes.len())
            };
        }
        // SAFETY: unmapped in `Drop`, after the vCPU was last run; no Rust reference to it exists.
        unsafe { vm.map_memory(0, 0, MEMORY_LEN as u64, memory as u64) }.unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let (rip, gdt) = (CODE as u32, GDT as u64);
        vcpu.start_at(Entry::Pvh {
            rip,
            start_info: 0x6000,
            gdt,
        })
        .unwrap();
        Some(Self {
            vcpu,
            vm,
            memory: NonNull::new(memory).unwrap(),
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; the vCPU does not run any more.
        unsafe { libc::munmap(self.memory.as_ptr(), MEMORY_LEN) };
    }
}

#[test]
fn port_accesses_come_with_their_width() {
    // mov dx, 0x3f8; in ax, dx; out dx, al; mov esi, 0x1000; mov ecx, 3; rep outsb; out dx, eax
    let code = [
        0x66, 0xba, 0xf8, 0x03, 0x66, 0xed, 0xee, 0xbe, 0, 0x10, 0, 0, 0xb9, 3, 0, 0, 0, 0xf3, 0x6e, 0xef,
    ];
    let Some(mut machine) = Machine::new(&code) else {
        return;
    };
    match machine.vcpu.run() {
        Exit::PortIn {
            port: 0x3f8,
            width: 2,
            data,
        } => data.copy_from_slice(&[0x5a, 0xa5]),
        exit => panic!("{exit:?}"),
    }
    assert!(matches!(
        machine.vcpu.run(),
        Exit::PortOut {
            port: 0x3f8,
            width: 1,
            data: [0x5a]
        }
    ));
    let mut string = Vec::new();
    while string.len() < 3 {
        match machine.vcpu.run() {
            Exit::PortOut { width: 1, data, .. } => string.extend_from_slice(data),
            exit => panic!("{exit:?}"),
        }
    }
    assert_eq!(string, code[..3]);
    assert!(matches!(
        machine.vcpu.run(),
        Exit::PortOut {
            width: 4,
            data: [0x5a, 0xa5, ..],
            ..
        }
    ));
}

#[test]
fn memory_that_is_not_there_is_read_and_written_outside() {
    // mov eax, [0x200000]; inc eax; mov [0x200008], eax
    let code = [0xa1, 0, 0, 0x20, 0, 0x40, 0xa3, 8, 0, 0x20, 0];
    let Some(mut machine) = Machine::new(&code) else {
        return;
    };
    match machine.vcpu.run() {
        Exit::MmioRead {
            address: 0x20_0000,
            data,
        } => data.copy_from_slice(&41u32.to_le_bytes()),
        exit => panic!("{exit:?}"),
    }
    assert!(matches!(
        machine.vcpu.run(),
        Exit::MmioWrite {
            address: 0x20_0008,
            data: [42, 0, 0, 0]
        }
    ));
}

#[test]
fn a_doorbell_rings_without_an_exit_and_matches_its_value() {
    // mov ax, 7; mov [0x100000], ax; mov eax, 1; mov [0x100000], eax; mov [0x100000], ax; out 0x80, al
    let code = [
        0x66, 0xb8, 7, 0, 0x66, 0xa3, 0, 0, 0x10, 0, 0xb8, 1, 0, 0, 0, 0xa3, 0, 0, 0x10, 0, 0x66, 0xa3, 0, 0,
        0x10, 0, 0xe6, 0x80,
    ];
    let rings = |datamatch| {
        let mut machine = Machine::new(&code)?;
        let bell = EventFd::new(EFD_NONBLOCK).unwrap();
        let address = EventAddress::Mmio(DOORBELL);
        machine
            .vm
            .add_doorbell(address, datamatch, bell.as_raw_fd())
            .unwrap();
        let mut exits = 0;
        while let Exit::MmioWrite { address, .. } = machine.vcpu.run() {
            assert_eq!(address, DOORBELL);
            exits += 1;
        }
        machine.vm.remove_doorbell(address, datamatch, bell.as_raw_fd());
        Some((bell.read().unwrap(), exits))
    };
    let Some(any) = rings(None) else { return };
    assert_eq!(any, (3, 0), "any value and width");
    assert_eq!(rings(Some(1)), Some((1, 2)), "32-bit writes of 1 only");
}

/// Writes to a coalesced range wait in order, in memory and ports alike, and no exit tells of them.
#[test]
fn coalesced_writes_wait_for_whoever_drains_them() {
    // mov al, 1; out 0xf1, al; mov eax, 2; mov [0x100000], eax; mov al, 3; out 0xf2, al; out 0x80, al
    let code = [
        0xb0, 1, 0xe6, 0xf1, 0xb8, 2, 0, 0, 0, 0xa3, 0, 0, 0x10, 0, 0xb0, 3, 0xe6, 0xf2, 0xe6, 0x80,
    ];
    let Some(mut machine) = Machine::new(&code) else {
        return;
    };
    let coalesced = machine.vm.coalesced();
    let zones = [(EventAddress::Pio(0xf1), 2), (EventAddress::Mmio(DOORBELL), 4)];
    for (address, len) in zones {
        if !coalesced.add(address, len).unwrap() {
            println!("SKIPPED: this KVM does not coalesce {address:?}");
            return;
        }
    }
    assert!(matches!(machine.vcpu.run(), Exit::PortOut { port: 0x80, .. }));
    let mut seen = Vec::new();
    coalesced.drain(|address, data| seen.push((address, data.to_vec())));
    let wanted = [
        (EventAddress::Pio(0xf1), vec![1]),
        (EventAddress::Mmio(DOORBELL), vec![2, 0, 0, 0]),
        (EventAddress::Pio(0xf2), vec![3]),
    ];
    assert_eq!(seen, wanted);
    coalesced.drain(|address, _| panic!("{address:?} twice"));
    assert_eq!(coalesced.drained(), 3);
    zones
        .iter()
        .for_each(|(address, len)| coalesced.remove(*address, *len));
    drop(machine);
    let Some(mut machine) = Machine::new(&code) else {
        return;
    };
    assert!(
        matches!(machine.vcpu.run(), Exit::PortOut { port: 0xf1, .. }),
        "not coalesced"
    );
}

/// A full ring makes the next write an exit, and the order stays whole.
#[test]
fn a_full_ring_of_coalesced_writes_is_an_exit() {
    // mov ecx, 300; 1: mov eax, ecx; out 0xf1, al; loop 1b; out 0x80, al
    let code = [
        0xb9, 0x2c, 1, 0, 0, 0x89, 0xc8, 0xe6, 0xf1, 0xe2, 0xfa, 0xe6, 0x80,
    ];
    let Some(mut machine) = Machine::new(&code) else {
        return;
    };
    let coalesced = machine.vm.coalesced();
    if !coalesced.add(EventAddress::Pio(0xf1), 1).unwrap() {
        println!("SKIPPED: this KVM does not coalesce ports");
        return;
    }
    let (mut seen, mut exits) = (Vec::new(), 0);
    loop {
        let (port, value) = match machine.vcpu.run() {
            Exit::PortOut { port, data, .. } => (port, data[0]),
            exit => panic!("{exit:?}"),
        };
        coalesced.drain(|_, data| seen.push(data[0]));
        if port == 0x80 {
            break;
        }
        seen.push(value);
        exits += 1;
    }
    let wanted: Vec<u8> = (1..=300_u32).rev().map(|value| value as u8).collect();
    assert_eq!(seen, wanted);
    assert!((1..4).contains(&exits), "{exits}");
}

#[test]
fn a_kick_ends_a_loop_and_one_before_the_run_is_not_lost() {
    // jmp $
    let Some(mut machine) = Machine::new(&[0xeb, 0xfe]) else {
        return;
    };
    let kicker = machine.vcpu.kicker();
    kicker.kick();
    assert!(matches!(machine.vcpu.run(), Exit::Kicked));
    let guard = machine.vcpu.enter_thread();
    let other = kicker.clone();
    let thread = std::thread::spawn(move || other.kick());
    assert!(matches!(machine.vcpu.run(), Exit::Kicked));
    thread.join().unwrap();
    drop(guard);
    drop(machine);
    kicker.kick();
}

#[test]
fn a_triple_fault_is_a_shutdown() {
    // int 3 without an interrupt table
    let Some(mut machine) = Machine::new(&[0xcd, 3]) else {
        return;
    };
    let exit = machine.vcpu.run();
    let told = matches!(exit, Exit::Shutdown(_) | Exit::Broken(_));
    assert!(told, "{exit:?}");
}

#[test]
fn interrupt_routes_are_reused_and_run_out_with_an_error() {
    let Some(machine) = Machine::new(&[0xf4]) else {
        return;
    };
    let routes = machine.vm.routes();
    for _ in 0..3 {
        let msi = routes.msi().unwrap();
        msi.signal();
        msi.route(0xfee0_0000, 0x41).unwrap();
        msi.signal();
        msi.mask().unwrap();
    }
    let mut all = Vec::new();
    while let Ok(msi) = routes.msi() {
        all.push(msi);
        assert!(all.len() <= 1024);
    }
    assert!(all.len() > 900, "{}", all.len());
    all.clear();
    routes.msi().unwrap();
}
