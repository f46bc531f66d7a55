//! CPUID as a guest sees it: what the host's KVM supports, with the topology of this machine (one package, one thread
//! per core) and without what only the host can use.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
const TOPOLOGY_SMT: u32 = 1 << 8;
const TOPOLOGY_CORE: u32 = 2 << 8;

/// The table for vCPU `index` (also its APIC ID) of `vcpus`.
pub(crate) fn for_guest(supported: &CpuId, index: u8, vcpus: u8, deadline_timer: bool) -> CpuId {
    let mut table = supported.clone();
    for entry in table.as_mut_slice() {
        patch(entry, u32::from(index), u32::from(vcpus), deadline_timer);
    }
    table
}

fn patch(entry: &mut kvm_cpuid_entry2, apic_id: u32, vcpus: u32, deadline_timer: bool) {
    let id_bits = vcpus.next_power_of_two().trailing_zeros();
    match (entry.function, entry.index) {
        (0x1, _) => {
            entry.ebx = (entry.ebx & 0x0000_ffff) | (vcpus << 16) | (apic_id << 24);
            entry.ecx |= ECX_HYPERVISOR;
            entry.ecx = with(entry.ecx, ECX_TSC_DEADLINE, deadline_timer);
            entry.edx = with(entry.edx, EDX_HTT, vcpus > 1);
        }
        // Caches: the first two levels belong to one core, the others to the package.
        (0x4, _) if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 7;
            let sharing = if level >= 3 { (1 << id_bits) - 1 } else { 0 };
            entry.eax = (entry.eax & 0x3fff) | (sharing << 14) | (((1 << id_bits) - 1) << 26);
        }
        // Frequency and power: not the guest's to manage. The always-running APIC timer stays.
        (0x6, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (entry.eax & (1 << 2), 0, 0, 0),
        (0xb | 0x1f, 0) => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 1, TOPOLOGY_SMT, apic_id);
        }
        (0xb | 0x1f, 1) => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (id_bits, vcpus, TOPOLOGY_CORE | 1, apic_id);
        }
        (0xb | 0x1f, level) => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, level, apic_id);
        }
        (0x8000_0008, _) => entry.ecx = (entry.ecx & !0xf0ff) | (id_bits << 12) | (vcpus - 1),
        // AMD's caches: as leaf 4, whose layout this is.
        (0x8000_001d, _) if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 7;
            let sharing = if level >= 3 { vcpus - 1 } else { 0 };
            entry.eax = (entry.eax & 0x3fff) | (sharing << 14);
        }
        (0x8000_001e, _) => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (apic_id, apic_id & 0xff, 0, 0);
        }
        _ => {}
    }
}

fn with(word: u32, bit: u32, on: bool) -> u32 {
    if on { word | bit } else { word & !bit }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(entries: &[kvm_cpuid_entry2], index: u8, vcpus: u8) -> Vec<kvm_cpuid_entry2> {
        for_guest(&CpuId::from_entries(entries).unwrap(), index, vcpus, true)
            .as_slice()
            .to_vec()
    }

    fn entry(function: u32, index: u32, eax: u32, ebx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ..Default::default()
        }
    }

    #[test]
    fn leaf_1_has_the_apic_id_and_says_that_it_is_a_guest() {
        let table = guest(&[entry(1, 0, 0, 0xff_08_42)], 3, 4);
        assert_eq!(table[0].ebx, 0x03_04_08_42);
        assert_ne!(table[0].ecx & ECX_HYPERVISOR, 0);
        assert_ne!(table[0].ecx & ECX_TSC_DEADLINE, 0);
        assert_ne!(table[0].edx & EDX_HTT, 0);
        assert_eq!(guest(&[entry(1, 0, 0, 0)], 0, 1)[0].edx & EDX_HTT, 0);
    }

    #[test]
    fn topology_is_one_thread_per_core_in_one_package() {
        let leaves = [
            entry(0xb, 0, 9, 9),
            entry(0xb, 1, 9, 9),
            entry(0xb, 2, 9, 9),
            entry(0x8000_0008, 0, 40, 0),
        ];
        let table = guest(&leaves, 4, 5);
        assert_eq!((table[0].eax, table[0].ebx, table[0].edx), (0, 1, 4));
        assert_eq!((table[1].eax, table[1].ebx, table[1].edx), (3, 5, 4));
        assert_eq!((table[2].eax, table[2].ebx, table[2].ecx), (0, 0, 2));
        assert_eq!(table[3].ecx, (3 << 12) | 4);
        assert_eq!(table[3].eax, 40, "address widths are the host's");
    }

    #[test]
    fn one_cpu_needs_no_id_bits() {
        let table = guest(&[entry(0xb, 1, 9, 9), entry(4, 0, 0x1c00_4121, 0)], 0, 1);
        assert_eq!((table[0].eax, table[0].ebx), (0, 1));
        assert_eq!(table[1].eax >> 14, 0);
    }
}
