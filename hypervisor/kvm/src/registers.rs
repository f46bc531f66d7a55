//! What a boot processor's registers hold when the kernel gets control.

use kvm_bindings::{Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use crate::KvmError;

/// How the boot processor enters its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Linux's 64-bit boot protocol: long mode, identity-mapped by the tables at `page_tables`, RSI to the zero page.
    Linux64 {
        /// Guest physical address.
        rip: u64,
        /// Zero page ("boot_params").
        boot_params: u64,
        /// Top-level page table.
        page_tables: u64,
        /// A table whose entries 2 (code) and 3 (data) are flat 64-bit segments.
        gdt: u64,
        /// Top of a small stack.
        stack: u64,
    },
    /// PVH: 32-bit protected mode without paging, EBX to the start info.
    Pvh {
        /// Guest physical address.
        rip: u32,
        /// `hvm_start_info`.
        start_info: u32,
        /// A table whose entries 2 (code) and 3 (data) are flat 32-bit segments.
        gdt: u64,
    },
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 1 << 1;
const GDT_LIMIT: u16 = 5 * 8 - 1;
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = (1 << 11) | 6;

const LAPIC_LVT_LINT0: usize = 0x350;
const LAPIC_LVT_LINT1: usize = 0x360;
const DELIVERY_EXTINT: u32 = 0x700;
const DELIVERY_NMI: u32 = 0x400;

pub(crate) fn set(vcpu: &VcpuFd, entry: Entry) -> Result<(), KvmError> {
    let mut sregs = vcpu
        .get_sregs()
        .map_err(KvmError::call("read a vCPU's system registers"))?;
    let regs = match entry {
        Entry::Linux64 {
            rip,
            boot_params,
            page_tables,
            gdt,
            stack,
        } => {
            long_mode(&mut sregs, page_tables, gdt);
            kvm_regs {
                rip,
                rsi: boot_params,
                rsp: stack,
                rbp: stack,
                rflags: RFLAGS_RESERVED,
                ..Default::default()
            }
        }
        Entry::Pvh { rip, start_info, gdt } => {
            protected_mode(&mut sregs, gdt);
            kvm_regs {
                rip: u64::from(rip),
                rbx: u64::from(start_info),
                rflags: RFLAGS_RESERVED,
                ..Default::default()
            }
        }
    };
    vcpu.set_sregs(&sregs)
        .map_err(KvmError::call("set a vCPU's system registers"))?;
    vcpu.set_regs(&regs)
        .map_err(KvmError::call("set a vCPU's registers"))?;
    set_fpu(vcpu)?;
    set_local_apic(vcpu)
}

fn long_mode(sregs: &mut kvm_sregs, page_tables: u64, gdt: u64) {
    flat_segments(sregs, gdt, true);
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = page_tables;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
}

fn protected_mode(sregs: &mut kvm_sregs, gdt: u64) {
    flat_segments(sregs, gdt, false);
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr3 = 0;
    sregs.cr4 = 0;
    sregs.efer = 0;
}

fn flat_segments(sregs: &mut kvm_sregs, gdt: u64, long: bool) {
    let code = kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: CODE_SELECTOR,
        type_: 0xb,
        present: 1,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        selector: DATA_SELECTOR,
        type_: 0x3,
        db: 1,
        l: 0,
        ..code
    };
    let tss = kvm_segment {
        limit: 0x67,
        selector: TSS_SELECTOR,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = tss;
    sregs.gdt.base = gdt;
    sregs.gdt.limit = GDT_LIMIT;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
}

fn set_fpu(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let fpu = kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    };
    vcpu.set_fpu(&fpu)
        .map_err(KvmError::call("set a vCPU's floating-point registers"))
}

/// What firmware leaves behind on every processor: fast string operations, and memory that is write-back where nothing says
/// otherwise. Linux stops all processors to repair it where they differ.
pub(crate) fn set_msrs(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let entries = [
        entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ];
    let msrs = Msrs::from_entries(&entries).map_err(|_| KvmError::Call {
        action: "list a vCPU's MSRs",
        source: std::io::Error::other("too many"),
    })?;
    // The number that KVM accepted is not checked: a host that lacks one of these runs guests well without it.
    vcpu.set_msrs(&msrs)
        .map(drop)
        .map_err(KvmError::call("set a vCPU's MSRs"))
}

/// LINT0 takes the 8259s' interrupts and LINT1 is the NMI, as firmware sets them up.
fn set_local_apic(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let mut lapic = vcpu.get_lapic().map_err(KvmError::call("read a local APIC"))?;
    set_delivery(&mut lapic, LAPIC_LVT_LINT0, DELIVERY_EXTINT);
    set_delivery(&mut lapic, LAPIC_LVT_LINT1, DELIVERY_NMI);
    vcpu.set_lapic(&lapic).map_err(KvmError::call("set a local APIC"))
}

fn set_delivery(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    for (at, byte) in lapic.regs.iter_mut().skip(register).zip(mode.to_le_bytes()) {
        *at = byte as _;
    }
}
